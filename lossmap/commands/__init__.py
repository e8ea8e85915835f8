"""The doors: what a person asked for, told as a story. A door never imports a door."""

# command: (room, function, what it is for)
DOORS = {
    "surface": ("lossmap.commands.surface", "main", "losses and accuracies over a line or plane, drawn"),
    "eigenmap": ("lossmap.commands.eigenmap", "main", "extreme Hessian eigenvalues over the same grid"),
    "spectrum": ("lossmap.commands.spectrum", "main", "curvature at one checkpoint, or --along a run of them"),
    "health": ("lossmap.commands.health", "main", "whether a network is in good health, and why"),
    "plane": ("lossmap.commands.plane", "main", "make and inspect planes, project a training path"),
    "draw": ("lossmap.commands.draw", "main", "draw what a result file holds"),
    "watch": ("lossmap.commands.draw", "watch", "draw it again while it grows"),
    "estimate": ("lossmap.commands.estimate", "main", "what a survey will cost, from a few points"),
    "submit": ("lossmap.commands.submit", "main", "run on SLURM"),
    "status": ("lossmap.commands.status", "main", "how far a result is; exits 0, 3 or 75 by what the file says"),
    "resume": ("lossmap.commands.resume", "main", "go on with a result, with no flags at all"),
    "merge": ("lossmap.commands.merge", "main", "join the shards of an array"),
    "train": ("lossmap.commands.train", "main", "a small trainer that leaves checkpoints behind"),
    "demo": ("lossmap.commands.demo", "main", "train two small nets, survey and draw them"),
}

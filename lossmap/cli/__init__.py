"""The doors: what a person asked for, told as a story. A door never imports a door."""

# command: (room, function, what it is for)
DOORS = {
    "surface": ("lossmap.cli.surface", "main", "losses and accuracies over a line or plane, drawn"),
    "eigenmap": ("lossmap.cli.eigenmap", "main", "extreme Hessian eigenvalues over the same grid"),
    "spectrum": ("lossmap.cli.spectrum", "main", "curvature at one checkpoint, or --along a run of them"),
    "health": ("lossmap.cli.health", "main", "whether a network is in good health, and why"),
    "plane": ("lossmap.cli.plane", "main", "make and inspect planes, project a training path"),
    "draw": ("lossmap.cli.draw", "main", "draw what a result file holds"),
    "watch": ("lossmap.cli.draw", "watch", "draw it again while it grows"),
    "estimate": ("lossmap.cli.estimate", "main", "what a survey will cost, from a few points"),
    "submit": ("lossmap.cli.submit", "main", "run on SLURM"),
    "status": ("lossmap.cli.status", "main", "how far a result is; exits 0, 3 or 75 by what the file says"),
    "resume": ("lossmap.cli.resume", "main", "go on with a result, with no flags at all"),
    "merge": ("lossmap.cli.merge", "main", "join the shards of an array"),
    "train": ("lossmap.cli.train", "main", "a small trainer that leaves checkpoints behind"),
    "demo": ("lossmap.cli.demo", "main", "train two small nets, survey and draw them"),
}

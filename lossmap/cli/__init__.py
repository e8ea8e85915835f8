"""Command-line interface: one module per subcommand, which imports no other one (but for `spectrum --along`)."""

# subcommand: (module, function, summary)
COMMANDS = {
    "surface": ("lossmap.cli.surface", "main", "losses and accuracies over a line or plane, drawn"),
    "eigenmap": ("lossmap.cli.eigenmap", "main", "extreme Hessian eigenvalues over the same grid"),
    "spectrum": ("lossmap.cli.spectrum", "main", "curvature at one checkpoint, or at several side by side"),
    "sharpness": ("lossmap.cli.sharpness", "main", "how sharp a minimum is, by several measures side by side"),
    "connect": ("lossmap.cli.connect", "main", "the line between two checkpoints: losses and the barrier on it"),
    "topology": ("lossmap.cli.topology", "main", "minima of computed surfaces, their basins, and how they merge"),
    "dynamics": ("lossmap.cli.dynamics", "main", "leading Hessian eigenpairs along a training run"),
    "health": ("lossmap.cli.health", "main", "whether a network is in good health, and why"),
    "study": ("lossmap.cli.study", "main", "the classic studies of loss landscapes, on small nets"),
    "plane": ("lossmap.cli.plane", "main", "make and inspect planes, project a training path"),
    "draw": ("lossmap.cli.draw", "main", "draw a result file"),
    "watch": ("lossmap.cli.draw", "watch", "draw a result again and again while it grows"),
    "estimate": ("lossmap.cli.estimate", "main", "the cost of a survey, from a few points"),
    "submit": ("lossmap.cli.submit", "main", "run a command on SLURM"),
    "campaign": ("lossmap.cli.campaign", "main", "many surveys and examinations as one, with one table and page"),
    "status": ("lossmap.cli.status", "main", "progress of a result; exits 0, 3 or 75 by what the file says"),
    "resume": ("lossmap.cli.resume", "main", "continue a result, with no flags at all"),
    "merge": ("lossmap.cli.merge", "main", "join the shards of an array"),
    "init": ("lossmap.cli.init", "main", "a commented file with model, data and loss to start from"),
    "train": ("lossmap.cli.train", "main", "a small trainer that writes checkpoints"),
    "legacy": ("lossmap.cli.legacy", "main", "the drawing scripts of the original tool, by their command lines"),
    "demo": ("lossmap.cli.demo", "main", "train two small nets, survey and draw them"),
}

"""Problem, batches, loaders, data sets, checkpoints, corruptions."""

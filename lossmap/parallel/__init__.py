"""Parallel execution: ranks and teams over MPI, dispatcher and workers, devices, SLURM, cost model, shutdown."""

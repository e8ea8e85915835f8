"""WHO does it: the team (the only room that knows MPI), the dealer, SLURM."""

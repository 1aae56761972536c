"""Who starts a run: this machine's ranks, SLURM's nodes, and the GPUs they get."""

"""The coordinator's pages: what the commands do, and nothing else."""

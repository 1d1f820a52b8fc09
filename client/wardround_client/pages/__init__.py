"""The hospital's pages, made for the person who has to be able to say yes: what the commands do, and nothing else."""

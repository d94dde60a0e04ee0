"""A run on disk: its folder and what is kept there, its checkpoints, and how it ends."""

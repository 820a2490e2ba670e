"""A run on the disk: folder, checkpoints, models, records."""

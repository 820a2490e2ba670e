"""Training: the loop, its optimizer, checkpoints and records."""

"""Training: the loop (trainer), what it minimizes (objective), and what keeps it going."""

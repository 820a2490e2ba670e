"""Training: the loop (trainer), what it minimizes (objective, distillation, masks), and what keeps it going."""

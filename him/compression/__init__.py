"""What makes a trained model smaller and faster: pruning, fine-tuning by distillation, int8, and the proof."""

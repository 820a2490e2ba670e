"""HIM timed against what its users would otherwise run: the Hugging Face Trainer, a plain PyTorch loop, `run_qa`."""

"""What a user asks for, from settings to results: train, resume, compress, predict, verify, compare."""

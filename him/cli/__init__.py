"""Command lines: flags, messages, exit status."""

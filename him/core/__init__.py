"""What everything stands on: errors, messages, files, signals, device and precision."""

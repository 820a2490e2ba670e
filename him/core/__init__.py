"""What everything stands on: errors, messages, files, the hub, pictures, signals, device and precision."""

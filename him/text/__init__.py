"""Text to token ids: tokenizers, loaded or trained on the data."""

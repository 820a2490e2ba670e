"""Summarization: a prefix language model that copies."""

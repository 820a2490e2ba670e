"""Data of any task: sources, readers per format, documents, batches and their order, the cache of prepared data."""

"""Raw data: where it comes from, its readers per format, lexical features, batches and their order."""

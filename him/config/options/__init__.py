"""Every setting of a run, as dataclass fields that are flags too."""

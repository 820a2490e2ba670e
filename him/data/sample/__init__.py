"""The built-in sample data: an invented world, told and asked about in varied wordings, made from a seed."""

from him.data.sample.squad import squad_sample

__all__ = ["squad_sample"]

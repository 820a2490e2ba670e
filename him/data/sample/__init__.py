"""The built-in sample data: an invented world, told, asked about and summed up in varied wordings, made from a seed."""

from him.data.sample.squad import squad_sample
from him.data.sample.summarization import summarization_sample
from him.data.sample.texts import text_sample

__all__ = ["squad_sample", "summarization_sample", "text_sample"]

"""The settings of a run: what they are, what may be in them, where they come from."""

from him.config.config import Config

__all__ = ["Config"]

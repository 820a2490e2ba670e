"""HIM: trains a small transformer encoder from scratch, shows whether it learns, and hands over a small, fast model."""

__all__ = ["Config", "load", "train"]


def __getattr__(name: str):
    # Importing PyTorch takes most of a second: only who trains or predicts waits for it.
    if name == "Config":
        from him.config import Config

        return Config
    if name == "train":
        from him.workflows.train import train

        return train
    if name == "load":
        from him.workflows.predict import load

        return load
    raise AttributeError(f"module 'him' has no attribute '{name}'")

"""What tests of the sources of data share: a hub that answers, or a cache with nothing in it."""

from pathlib import Path

import pytest


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the hub answered."""
    monkeypatch.setattr("him.core.hub._why_unreachable", lambda name: None)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of `datasets` of this test alone."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"

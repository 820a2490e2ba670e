"""Untrusted runs, which somebody else may have made: what is refused before it is read, or written through.

Nothing in a run is ever executed. What is left is a link that leads out of it to files of the user's, a device or a
pipe in the place of a file, and settings that send prepared data and pictures to any place on the disk.
"""

import os
import stat
from collections.abc import Collection
from pathlib import Path

from him.config import Config
from him.config.options import PRETRAINED_PREFIX, SPECS
from him.core.errors import CheckpointError, ConfigError

# What is in a place that HIM has written to before.
_PREFIXES = (*(spec.cache_prefix for spec in SPECS.values()), PRETRAINED_PREFIX)
OWN = {"cache_dir": tuple(f"{prefix}-*" for prefix in _PREFIXES), "attention_dir": ("*/epoch*_layer*.png",)}


def check_files(folder: Path) -> None:
    """Sees to it that whatever is read in a folder has an end; links to files are fine, as in the hub's cache. Raises
    CheckpointError: something is neither a file nor a folder."""
    for path in sorted(folder.iterdir()):
        _check_kind(path)


def check_writable(run: Path) -> None:
    """Sees to it that writing into a run, and removing what is old, stays in its folder. Raises CheckpointError: a link
    leads out of it, or something is neither a file nor a folder."""
    home = os.path.realpath(run)
    for parent, folders, files in os.walk(home):
        for path in (Path(parent, name) for name in (*folders, *files)):
            target = os.path.realpath(path)
            if path.is_symlink() and not _is_below(target, home):
                shown = run / path.relative_to(home)
                raise CheckpointError(f"{shown}: a link out of the run, to {target}; remove it, or copy what it names")
            _check_kind(path)


def check_places(run: Path, config: Config, given: Collection[str] = ()) -> None:
    """Sees to it that what goes on with a run writes beside it, below the current folder, or where a flag says.

    A run that is still where its settings say that it was made, by an absolute path, may name any place; a run that
    was moved, any place that holds such files already.

    `config` is with the settings that were changed; those named in `given` were given by flags.

    Raises ConfigError: the run's own settings name another place.
    """
    made_at = Path(config.output_dir, run.name)
    if made_at.is_absolute() and made_at.resolve() == run.resolve():
        return
    uses = {"cache_dir": config.cache_dir or os.path.join(config.output_dir, ".cache")}
    if config.attention_examples:
        uses["attention_dir"] = config.attention_dir
    homes = (os.getcwd(), os.path.abspath(run.parent))
    for name, place in uses.items():
        is_own = any(True for pattern in OWN[name] for _ in Path(place).glob(pattern))
        if name not in given and not is_own and not any(_is_below(os.path.abspath(place), home) for home in homes):
            what = {"cache_dir": "prepared data", "attention_dir": "attention pictures"}[name]
            raise ConfigError(
                f"{run}: its settings send {what} to {place}, out of this folder; give --{name} to say where they go"
            )


def _check_kind(path: Path) -> None:
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG  # a link to nothing is reported by whoever needs it
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path}: neither a file nor a folder, but a device or a pipe; remove it")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)

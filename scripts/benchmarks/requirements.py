"""What HIM is compared with is not part of HIM, and may be missing."""

import importlib.util

from him.core.errors import ConfigError

PEER_PACKAGES = ("accelerate", "datasets", "transformers")


def require_peers() -> None:
    """Raises ConfigError, with the fix, if a package that HIM is compared with is missing."""
    missing = [name for name in PEER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"benchmarks need {' and '.join(missing)}: pip install -r requirements-dev.txt")

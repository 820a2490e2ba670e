"""What all command lines share: one line for an expected error, exit status, tables, JSON."""

import errno
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from him.errors import HimError


def run_command(command: Callable[[], int | None], prog: str) -> int:
    """Runs a command; what is the input's or the machine's fault becomes one line on stderr.

    Returns:
        The exit status: 0, what the command returned, or 2 after an expected error.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        return command() or 0
    except HimError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; make room, or name another place"
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def metric_table(metrics: Mapping[str, float]) -> str:
    """Metrics as lines of name and value."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"  {name:<{width}}  {value:10.4f}" for name, value in metrics.items())


def print_json(data: Any) -> None:
    """Prints one JSON object."""
    print(json.dumps(data, ensure_ascii=False))

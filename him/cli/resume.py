"""`him resume RUN`: goes on with an interrupted run; the same as `him train --resume RUN`."""

from collections.abc import Sequence

from him.cli import train
from him.cli.command import Program
from him.core.errors import ConfigError

DESCRIPTION = """\
Goes on with an interrupted run, exactly.

  {line} runs/NAME                    from its last checkpoint
  {line} runs/NAME --num_epochs 20    with a larger budget

The flags are those of training. What a trained weight depends on cannot change.
"""


def run(arguments: Sequence[str], program: Program) -> int:
    """Runs the command; see `him.cli.main`."""
    if arguments and arguments[0] in ("-h", "--help"):
        train.build_parser(program, DESCRIPTION, usage=f"{program.prog} RUN [flags]").parse_args(["--help"])
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"the run comes first, as in {program.line} runs/NAME; see --help")
    return train.run(["--resume", *arguments], program)

"""`him resume RUN`: goes on with an interrupted run; the same as `him train --resume RUN`."""

from collections.abc import Sequence

from him.cli import train
from him.cli.command import Program
from him.cli.parser import named_task
from him.core.errors import ConfigError

DESCRIPTION = """\
Goes on with an interrupted run, exactly.

  {line} runs/NAME                    from its last checkpoint
  {line} runs/NAME --num_epochs 20    with a larger budget

The flags are those of training. What a trained weight depends on cannot change.
"""


def run(arguments: Sequence[str], program: Program) -> int:
    """Runs the command; see `him.cli.main`."""
    if {"-h", "--help"} & set(arguments):
        usage = f"{program.prog} RUN [flags]"
        train.build_parser(program, named_task(arguments), DESCRIPTION, usage).parse_args(["--help"])
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"the run comes first, as in {program.line} runs/NAME; see --help")
    return train.run(["--resume", *arguments], program, resume_flag="")

"""One-line messages: `where: what is wrong; how to fix it`, and values in them that cannot break the line."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, NoReturn

from him.core.errors import DataError

CAUSE_CHARACTERS = 200
SHOWN_CHARACTERS = 60
SHOWN_NAMES = 6
MESSAGE_CHARACTERS = 1500


def fail(where: str, fault: str, fix: str) -> NoReturn:
    """Raises DataError with the line that the three make."""
    raise DataError(f"{where}: {fault}; {fix}")


def shown(value: object) -> str:
    """`value` for a message: on one line whatever it holds, and short; a list or an object by its kind only."""
    if isinstance(value, str):
        return f'"{one_line(value, SHOWN_CHARACTERS)}"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and value.bit_length() > 128:  # str() of thousands of digits is refused by Python
        return f"a number of {value.bit_length()} bits"
    return str(value) if isinstance(value, int | float) else kind(value)


def as_given(value: object, form: Callable[[Any], str] = str) -> str:
    """The value of a setting for a message, without quotes, as it stands behind its flag.

    Args:
        value: of any type.
        form: writes it, such as `repr`.
    """
    try:
        return one_line(form(value), SHOWN_CHARACTERS + len("..."))
    except (ValueError, RecursionError):  # Python refuses to write out thousands of digits
        return "(too large to be shown)"


def shown_names(names: Iterable[object]) -> str:
    """The first few keys, columns or fields there are, for a message; "nothing" if there is none."""
    names = list(names)
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return (", ".join(shown(name) for name in names[:SHOWN_NAMES]) or "nothing") + more


def shown_source(path: str | PathLike) -> str:
    """A path for a message, on one line; not shortened, because the user has to find the file."""
    return one_line(str(path))


def one_line(text: str, limit: int | None = None) -> str:
    """Escapes whatever would break the line, hide in it or fail to print: newlines, controls, lone surrogates."""
    if limit and len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def line_of(message: str) -> str:
    """A message as a command prints it: on one line that does not fill the screen, whatever it quotes."""
    line = one_line(" ".join(message.split()))
    if len(line) <= MESSAGE_CHARACTERS:
        return line
    return f"{line[: MESSAGE_CHARACTERS // 2]} ... {line[-MESSAGE_CHARACTERS // 2 :]}"  # the fix is at its end


def cause_of(error: BaseException, limit: int = CAUSE_CHARACTERS) -> str:
    """What an error of a library says, on one line and not too long; its type where it says nothing."""
    return one_line(" ".join(str(error).split()) or type(error).__name__, limit)


def kind(value: object) -> str:
    """What JSON calls a value of this type."""
    kinds = ((bool, "true or false"), (str, "a string"), (int | float, "a number"), (Mapping, "an object"))
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")

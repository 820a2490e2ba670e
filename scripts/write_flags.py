"""Writes the flags of `main.py` into README.md, between its two marks, from the settings themselves."""

import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from him.cli.parser import flag_default, flag_names  # noqa: E402
from him.config.options import SECTIONS, choices_of  # noqa: E402

START, END = "<!-- flags: written by scripts/write_flags.py -->\n", "<!-- end of flags -->\n"


def flag_tables() -> str:
    """A Markdown table for each group of flags."""
    lines = []
    for section in SECTIONS:
        lines += [f"**{section.__doc__.rstrip('.')}**", "", "| flag | default | meaning |", "|---|---|---|"]
        for each in fields(section):
            names = ", ".join(f"`{name}`" for name in flag_names(each))
            choices = f"{', '.join(choices_of(each.name))}: " if choices_of(each.name) else ""
            lines.append(f"| {names} | {flag_default(each.name)} | {choices}{each.metadata['help']} |")
        lines.append("")
    return "\n".join(lines)


def with_flags(readme: str) -> str:
    """The README with its flags renewed."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{flag_tables()}\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_flags(path.read_text(encoding="utf-8")), encoding="utf-8")

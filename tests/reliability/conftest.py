"""The test bench of what HIM promises: a short form in `make test`, the full one by `make torture`."""

from collections.abc import Callable

import pytest

FIGURES: dict[str, list[str]] = {}


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often something is tried: `amount(10, 200)` is 10 in `make test` and 200 in `make torture`."""
    full = request.config.getoption("--torture")
    return lambda short, long: long if full else short


@pytest.fixture(scope="session")
def reached() -> Callable[[str, str], None]:
    """Notes a figure that a test has reached: `reached("damage is seen", "500 of 500 bit flips")`."""
    return lambda promise, figure: FIGURES.setdefault(promise, []).append(figure)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The promises with the figures reached."""
    if FIGURES and terminalreporter.config.getoption("--torture"):
        terminalreporter.section("promises")
        for promise, figures in FIGURES.items():
            terminalreporter.write_line(promise)
            for figure in figures:
                terminalreporter.write_line(f"  {figure}")

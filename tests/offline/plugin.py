"""Puts every test, and every process that a test starts, under `network_guard`."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.offline import network_guard

HERE = str(Path(__file__).resolve().parent)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")  # one on this machine would hide where a request goes


def pytest_configure(config: pytest.Config) -> None:
    """Sets the hook here, and the environment for processes to come."""
    for name in PROXIES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    handle, log = tempfile.mkstemp(prefix="him-network-")
    os.close(handle)
    os.environ[network_guard.LOG] = log
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
    network_guard.install()


@pytest.fixture(autouse=True)
def stays_on_this_machine() -> Iterator[None]:
    """Fails the test if it reached for the network, whatever became of the error."""
    yield
    found = network_guard.notes()
    assert not found, "reached for the network:\n" + "\n".join(found)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What came after the last test fails the session."""
    if found := network_guard.notes():
        print("reached for the network after the last test:", *found, sep="\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the file of notes."""
    Path(os.environ.pop(network_guard.LOG)).unlink(missing_ok=True)

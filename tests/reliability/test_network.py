"""No unasked network: the hook under which the whole suite runs sees every way out, here and in child processes."""

import multiprocessing
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.offline import network_guard
from tests.small_runs import ROOT, in_child, start_main

OUTSIDE = "192.0.2.1"  # for documentation (RFC 5737): nobody answers there
PORT = 9


def udp(work: Callable[[socket.socket], object]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        return work(opened)


def tcp(family: int, address: tuple) -> object:
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        return opened.connect(address)


WAYS = {
    "connect": lambda: tcp(socket.AF_INET, (OUTSIDE, PORT)),
    "connect over IPv6": lambda: tcp(socket.AF_INET6, ("2001:db8::1", PORT)),
    "connect, address mapped to IPv6": lambda: tcp(socket.AF_INET6, (f"::ffff:{OUTSIDE}", PORT)),
    "connect_ex": lambda: udp(lambda opened: opened.connect_ex((OUTSIDE, PORT))),
    "sendto": lambda: udp(lambda opened: opened.sendto(b"x", (OUTSIDE, PORT))),
    "sendmsg": lambda: udp(lambda opened: opened.sendmsg([b"x"], [], 0, (OUTSIDE, PORT))),
    "getaddrinfo": lambda: socket.getaddrinfo("huggingface.co", 443),
    "getaddrinfo of bytes": lambda: socket.getaddrinfo(b"huggingface.co", 443),
    "gethostbyname": lambda: socket.gethostbyname("huggingface.co"),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex("huggingface.co"),
    "gethostbyaddr": lambda: socket.gethostbyaddr(OUTSIDE),
    "getnameinfo": lambda: socket.getnameinfo((OUTSIDE, PORT), 0),
    "create_connection": lambda: socket.create_connection((OUTSIDE, PORT), timeout=1),
    "urlopen": lambda: urllib.request.urlopen("http://huggingface.co", timeout=1),
}
LOOK_UP = "import socket; socket.getaddrinfo('huggingface.co', 443)"
IN_SHELL = f'{sys.executable} -c "{LOOK_UP}" 2> {os.devnull}'
SWALLOWED = f"try:\n    {LOOK_UP}\nexcept Exception:\n    pass"


@pytest.mark.parametrize("way", WAYS)
def test_hook_refuses_and_notes(way):
    with pytest.raises(Exception, match="tests stay on this machine$") as refused:
        WAYS[way]()
    assert type(refused.value).__name__ == "NetworkUse"  # of this module, or of the copy that `sitecustomize` loads
    (line,) = network_guard.notes()
    assert f"in process {os.getpid()}: " in line and "test_network.py" in line


def test_hook_lets_this_machine_be_reached(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("127.0.0.1", "localhost"):
            socket.create_connection((name, server.getsockname()[1]), timeout=1).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        client.connect(str(tmp_path / "socket"))
    assert socket.getaddrinfo(None, PORT) and socket.getaddrinfo("::1", PORT)


def test_note_outlives_an_error_that_is_swallowed():
    exec(SWALLOWED)
    (line,) = network_guard.notes()
    assert line.startswith("socket.getaddrinfo 'huggingface.co'")


def look_up() -> None:
    exec(SWALLOWED)


def spawned() -> None:
    child = multiprocessing.get_context("spawn").Process(target=look_up)
    child.start()
    child.join()


def by_start_main() -> None:
    started = start_main(program=("-c", SWALLOWED))
    started.communicate(timeout=60)


CHILDREN = {
    "subprocess": lambda: subprocess.run([sys.executable, "-c", SWALLOWED], check=True),
    "its child": lambda: subprocess.run([sys.executable, "-c", f"import os; os.system({IN_SHELL!r})"], check=True),
    "start_main": by_start_main,
    "fork": lambda: in_child(look_up),
    "spawn": spawned,
}


@pytest.mark.parametrize("kind", CHILDREN)
def test_hook_reaches_children(kind):
    CHILDREN[kind]()
    (line,) = network_guard.notes()
    assert line.startswith("socket.getaddrinfo 'huggingface.co' in process") and f"process {os.getpid()}:" not in line


SUITE = f"""
import subprocess, sys

def test_fails_at_its_end():
{"".join(f"    {line}" + chr(10) for line in SWALLOWED.splitlines())}

def test_fails_for_its_child():
    subprocess.run([sys.executable, "-c", {SWALLOWED!r}], check=True)

def test_passes():
    pass
"""


def test_a_test_that_reaches_for_the_network_fails(tmp_path: Path, reached):
    (tmp_path / "test_three.py").write_text(SUITE, encoding="utf-8")
    options = ["-p", "tests.offline.plugin", "-p", "no:cacheprovider", "-q", "-c", os.devnull, f"--rootdir={tmp_path}"]
    program = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    finished = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1 and "3 passed, 2 errors" in finished.stdout, finished.stdout
    assert finished.stdout.count("AssertionError: reached for the network:") >= 2
    reached("no unasked network", f"{len(WAYS)} ways out are refused, and seen from {len(CHILDREN)} kinds of process")

"""No test reaches beyond this machine: an audit hook that refuses and notes every connect and every name look-up.

Loopback addresses and Unix sockets are free. What is refused is written to the file that `LOG` in the environment
names, so that neither a library that catches every error nor the end of a child process can hide it: the test that is
on fails at its end (see `plugin`). Only the standard library is imported here, because `sitecustomize` brings this file
into every process that a test starts. Sockets that compiled code opens past Python are not seen.
"""

import ipaddress
import os
import sys
import traceback

LOG = "HIM_TESTS_NETWORK_LOG"
LOCAL_NAMES = ("", "localhost")
OF_ADDRESS = ("socket.connect", "socket.sendto", "socket.sendmsg")  # socket, address
OF_HOST = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")  # host, ...
FRAMES = 30  # innermost calls in a note


class NetworkUse(Exception):
    """A test, or what it runs, reached for the network. No OSError: it is no network that is down."""


def install() -> None:
    """Sets the hook, which cannot be removed, in this process; processes forked from it have it too.

    Once: a worker that runs tests beside others has it from `sitecustomize` before the plugin asks for it.
    """
    if not getattr(sys, "him_network_guard", False):
        sys.addaudithook(_refuse)
        sys.him_network_guard = True


def _refuse(event: str, arguments: tuple) -> None:
    if not event.startswith("socket.") or _is_local(event, arguments):
        return
    calls = traceback.extract_stack(limit=FRAMES + 1)[:-1]
    way = " > ".join(f"{call.filename.rpartition('site-packages/')[2]}:{call.lineno}" for call in calls)
    what = f"{event} {_target(event, arguments)!r}"
    if LOG in os.environ:
        with open(os.environ[LOG], "a", encoding="utf-8") as file:
            file.write(f"{what} in process {os.getpid()}: {way}\n")
    raise NetworkUse(f"{what}: tests stay on this machine")


def _target(event: str, arguments: tuple) -> object:
    """The address or the host."""
    return arguments[1] if event in OF_ADDRESS else arguments[0]


def _is_local(event: str, arguments: tuple) -> bool:
    if event in OF_HOST:
        return _is_local_host(arguments[0])
    if event == "socket.getnameinfo":
        return _is_local_host(arguments[0][0])
    if event not in OF_ADDRESS:
        return True
    address = arguments[1]
    # Unix sockets have a path; None is the address that was connected to before.
    return not isinstance(address, tuple) or not isinstance(address[0], str) or _is_local_host(address[0])


def _is_local_host(host: str | bytes | None) -> bool:
    if host is None:
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    if name in LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def notes() -> list[str]:
    """What has been refused since the last call, in this process and in those that it started."""
    path = os.environ[LOG]
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    os.truncate(path, 0)
    return lines

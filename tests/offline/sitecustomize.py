"""Refuses every connection beyond this machine, in the process that imports it and in all Python processes below it.

The tests' conftest imports it, and puts its folder on PYTHONPATH, where Python looks for a module of this name.
"""

import errno
import ipaddress
import socket
import sys
from typing import Any

_CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_RESOLVING = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


def is_loopback(host: Any) -> bool:
    """Whether a name or an address is this machine's own."""
    name = host.decode(errors="replace") if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """What Python calls before each audited operation."""
    if event in _CONNECTING:
        address = arguments[1]
        if isinstance(address, tuple) and not is_loopback(address[0]):
            raise OSError(errno.ENETUNREACH, f"tests reach no other machine, such as {address[0]}")
    elif event in _RESOLVING and not is_loopback(arguments[0]):
        raise socket.gaierror(socket.EAI_NONAME, f"tests look up no other machine, such as {arguments[0]}")


sys.addaudithook(refuse)

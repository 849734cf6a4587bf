"""The tests themselves run without a network: every connection beyond this machine is refused."""

import socket
import subprocess
import sys

import pytest

ATTEMPTS = {
    "a connection by address": "socket.create_connection(('192.0.2.1', 80), timeout=1)",
    "a connection by IPv6 address": "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
    "a datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 80))",
    "a name": "socket.getaddrinfo('example.org', 80)",
    "a name, the old way": "socket.gethostbyname('example.org')",
    "a page": "__import__('urllib.request').request.urlopen('http://example.org', timeout=1)",
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_other_machines_are_out_of_reach(attempt: str) -> None:
    with pytest.raises(OSError, match="no other machine"):
        eval(attempt)


def test_other_machines_are_out_of_reach_for_processes_that_tests_start() -> None:
    program = "import socket, sys\n" + "".join(
        f"try:\n    {attempt}\nexcept OSError as error:\n    print('no other machine' in str(error))\n"
        for attempt in ATTEMPTS.values()
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * len(ATTEMPTS)


def test_this_machine_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, port), timeout=10).close()

"""Slow clients, and too many clients, do not block others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from ecr_calls import Caller

from ecr_parts.testing import LocalECR
from ecr_parts.testing._http import MAX_CONNECTIONS

TIMEOUT = 30  # seconds
REQUEST = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    b"X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.DescribeRepositories\r\n\r\n{}"
)
EXPECTING = REQUEST.replace(b"\r\n\r\n{}", b"\r\nExpect: 100-continue\r\n\r\n")
pytestmark = pytest.mark.usefixtures("_many_files")


@pytest.fixture
def _many_files() -> Iterator[None]:
    """The tests open two files for each connection, which is more than macOS allows."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4 * MAX_CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def connections() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def connect(ecr: LocalECR, connections: contextlib.ExitStack, sent: bytes = b"") -> socket.socket:
    address = ("127.0.0.1", int(ecr.endpoint_url.rpartition(":")[2]))
    connection = connections.enter_context(socket.create_connection(address, TIMEOUT))
    connection.sendall(sent)
    return connection


@pytest.mark.parametrize("sent", [b"", b"P", REQUEST[:50], REQUEST[:-1]], ids=len)
def test_slow_clients_do_not_block_others(
    sent: bytes, ecr: LocalECR, connections: contextlib.ExitStack
) -> None:
    slow = [connect(ecr, connections, sent) for _ in range(100)]
    for i in range(len(sent), len(REQUEST), 40):
        slow[0].sendall(REQUEST[i : i + 40])
        assert "uploadId" in Caller(ecr.client())("initiate_layer_upload")
    assert slow[0].recv(12) == b"HTTP/1.1 200"


def test_closes_the_longest_waiting_connections_if_there_are_too_many(
    ecr: LocalECR, connections: contextlib.ExitStack
) -> None:
    waiting = [connect(ecr, connections) for _ in range(MAX_CONNECTIONS + 20)]
    for _ in range(2):
        assert "uploadId" in Caller(ecr.client())("initiate_layer_upload")
    closed = [connection.recv(1) for connection in waiting[:20]]
    assert closed == [b""] * 20
    waiting[-1].sendall(REQUEST)
    assert waiting[-1].recv(12) == b"HTTP/1.1 200"


def occupy(ecr: LocalECR, connections: contextlib.ExitStack) -> list[socket.socket]:
    """As many connections as are allowed, each in the middle of a request."""
    sending = [connect(ecr, connections, EXPECTING) for _ in range(MAX_CONNECTIONS)]
    for connection in sending:
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return sending


def connect_one_more(ecr: LocalECR, connections: contextlib.ExitStack) -> socket.socket:
    """A connection whose request is not answered while the others last."""
    one_more = connect(ecr, connections, REQUEST)
    one_more.settimeout(0.2)
    with pytest.raises(TimeoutError):
        one_more.recv(1)
    one_more.settimeout(TIMEOUT)
    return one_more


@pytest.mark.parametrize("ends", [True, False], ids=["closed", "answered"])
def test_connection_waits_while_all_others_send(
    ends: bool, ecr: LocalECR, connections: contextlib.ExitStack
) -> None:
    sending = occupy(ecr, connections)
    one_more = connect_one_more(ecr, connections)
    if ends:
        sending.pop().close()
    else:  # it has no further request, so the server closes it
        one = sending.pop()
        one.sendall(b"{}")
        with one.makefile("rb") as file:
            assert file.read().startswith(b"HTTP/1.1 200")
    assert one_more.recv(12) == b"HTTP/1.1 200"
    for connection in sending:
        connection.sendall(b"{}")
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_stops_while_connections_wait(connections: contextlib.ExitStack) -> None:
    ecr = LocalECR()
    ecr.start()
    sending = occupy(ecr, connections)
    connect_one_more(ecr, connections)
    ecr.stop()
    for connection in sending:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_stops_while_clients_are_silent(connections: contextlib.ExitStack) -> None:
    ecr = LocalECR()
    ecr.start()
    silent = [connect(ecr, connections) for _ in range(MAX_CONNECTIONS)]
    ecr.stop()
    for connection in silent:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""

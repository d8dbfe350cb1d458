"""The HTTP server of LocalECR."""

from __future__ import annotations

import io
import json
import re
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from typing_extensions import override

from ecr_parts.testing._body import Blob, BodyBuffers, parse_body
from ecr_parts.testing._faults import Effect, Reply
from ecr_parts.testing._pull import PullAnswer, PullRequest, refuse
from ecr_parts.testing._service import Service

_IS_PUBLIC = {"AmazonEC2ContainerRegistry_V20150921": False, "SpencerFrontendService": True}
_DRIPS_EVERY = 0.05  # seconds
_LARGEST_REQUEST = 1024**3  # bytes
_READ = 1024**2  # bytes
MAX_CONNECTIONS = 256
"""At a time; further ones wait. Each takes a thread, and often two of the process's 1,024 files."""
_LINGER = 2.0  # seconds without a byte
_LOOPBACK = re.compile(r"(127(\.[0-9]{1,3}){3}|localhost|\[::1\])(:[0-9]+)?", re.IGNORECASE)
# Others open a file, which a forked child would inherit.
_SELECTOR = getattr(selectors, "PollSelector", selectors.SelectSelector)
_NOT_LOOPBACK = "LocalECR serves this machine only: Host must be loopback"
_NOT_A_REQUEST = b'{"__type": "SerializationException", "message": "Not a JSON 1.1 request"}'


class Server(ThreadingHTTPServer):
    """Serves a ``Service`` on 127.0.0.1."""

    # With the default of 5, clients that connect at the same time wait a second and try again.
    request_queue_size = socket.SOMAXCONN
    timeout = 0  # of ``handle_request``, which is called once a client has connected

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        self.buffers = BodyBuffers()
        self._slots = threading.Semaphore(MAX_CONNECTIONS)
        self._idle: dict[socket.socket, None] = {}
        """The connections that wait for a request, the longest waiting one first."""
        self._must_close_one = False
        """Whether the next connection that waits for a request is to be closed."""
        self._idle_lock = threading.Lock()
        self._wakeup, self._waker = socket.socketpair()
        self._connections: set[socket.socket] = set()
        self._handlers: list[threading.Thread] = []
        super().__init__(("127.0.0.1", port), _Handler)

    def serve(self) -> None:
        """Accept connections until ``shutdown``."""
        with _SELECTOR() as selector:
            for ready in (self.socket, self._wakeup):
                selector.register(ready, selectors.EVENT_READ)
            while self._wakeup not in [key.fileobj for key, _ in selector.select()]:
                self.handle_request()

    @override
    def shutdown(self) -> None:
        """End ``serve`` at once: with ``serve_forever``, it would wait for the next poll."""
        self._waker.send(b"\0")
        self._slots.release()  # it may wait for one

    @override
    def server_close(self) -> None:
        super().server_close()
        self._wakeup.close()
        self._waker.close()

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self._close_longest_idle()
            self._slots.acquire()  # until a connection has ended
            self._must_close_one = False
        # Daemons, so that a server that was not stopped does not keep the process alive.
        handler = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self._connections.add(request)
        self._handlers = [thread for thread in self._handlers if thread.is_alive()] + [handler]
        handler.start()

    @override
    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)
        self._slots.release()

    @contextmanager
    def idle(self, connection: socket.socket) -> Iterator[None]:
        """For the time in which a connection waits for a request."""
        with self._idle_lock:
            self._idle[connection] = None
            if self._must_close_one:
                self._must_close_one = False
                _shut(connection)
        try:
            yield
        finally:
            with self._idle_lock:
                self._idle.pop(connection, None)

    def _close_longest_idle(self) -> None:
        """Close the connection that waits longest for a request, or the first that will wait."""
        with self._idle_lock:
            longest = next(iter(self._idle), None)
            if longest is None:
                self._must_close_one = True
            else:
                _shut(longest)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that closed their connection."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # prints the traceback

    def close_in_child(self) -> None:
        """Close what a forked process has inherited. The connections of its parent stay open."""
        self.server_close()
        for connection in self._connections:
            # ``connection.close()`` would wait for a thread to close its files, and it is not here.
            socket.close(connection.detach())

    def break_connections(self) -> None:
        """Close all connections, and wait until their threads have ended."""
        for connection in list(self._connections):
            _shut(connection)
        for handler in self._handlers:
            handler.join()


_TLS_HANDSHAKE = b"\x16"  # the first byte of a record; RFC 8446, section 5.1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # buffered: header and body in separate packets would cost a round trip
    server: Server
    default_request_version = "HTTP/1.1"  # so that an answer to what is not HTTP has a status line
    _is_unread = False
    """Whether the client may send bytes that nobody will read."""

    @override
    def handle_one_request(self) -> None:
        """Handle a request, or a client that tries TLS first, as docker does since version 28.

        That one falls back to HTTP, but only if the answer is HTTP.
        """
        with self.server.idle(self.connection):
            first = cast("io.BufferedReader", self.rfile).peek(1)[:1]
        if first == _TLS_HANDSHAKE:
            self.command, self.requestline, self.request_version = "", "", "HTTP/1.1"
            self.send_error(400, "This server speaks HTTP, not TLS")
            return
        super().handle_one_request()

    @override
    def handle_expect_100(self) -> bool:
        """Send what curl waits for before it sends a large body."""
        goes_on = super().handle_expect_100()
        self.wfile.flush()
        return goes_on

    @override
    def finish(self) -> None:
        with suppress(OSError):  # the client has closed its connection
            if self._is_unread:
                self._linger()
            super().finish()
        self.rfile.close()

    def _linger(self) -> None:
        """Discard what the client still sends: if it is unread, closing loses the answer."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_LINGER)
        while self.connection.recv(_READ):
            pass

    @override
    def end_headers(self) -> None:
        if self._is_unread:
            self.send_header("Connection", "close")
        super().end_headers()

    @override
    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what ``http.server`` refuses, such as a method or a line that is too long."""
        self._is_unread = self.close_connection = True
        self._send_answer(refuse(code, "UNSUPPORTED", message or "The request is malformed"))

    def do_GET(self) -> None:
        lengths = self.headers.get_all("Content-Length", ["0"])
        if set(lengths) != {"0"} or "Transfer-Encoding" in self.headers:
            self._is_unread = self.close_connection = True
        if not self._is_from_loopback():
            return self._send_answer(refuse(400, "DENIED", _NOT_LOOPBACK))
        is_ranged = self.command == "GET" and "If-Range" not in self.headers
        request = PullRequest(
            self.path,
            accept=",".join(self.headers.get_all("Accept", [])),
            byte_range=self.headers.get("Range", "").strip() if is_ranged else "",
        )
        return self._send_answer(self.server.service.pull(request))

    do_HEAD = do_GET  # noqa: N815  (http.server's name)

    def _refuse_push(self) -> None:
        self._is_unread = self.close_connection = True
        message = "LocalECR serves pulls only by this route: push through ECR's API"
        self._send_answer(refuse(405, "UNSUPPORTED", message, {"Allow": "GET, HEAD"}))

    do_PUT = do_PATCH = do_DELETE = _refuse_push  # noqa: N815  (http.server's names)

    def _send_answer(self, answer: PullAnswer) -> None:
        self.send_response(answer.status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.writelines(answer.body)

    def _is_from_loopback(self) -> bool:
        # Web pages whose host name resolves to 127.0.0.1 must not reach it from a browser.
        hosts = self.headers.get_all("Host", [])
        return len(hosts) == 1 and _LOOPBACK.fullmatch(hosts[0].strip()) is not None

    def do_POST(self) -> None:
        if not self._is_from_loopback():
            return self._refuse(400, _NOT_LOOPBACK)
        if self.path.startswith("/v2/"):
            return self._refuse_push()
        lengths = set(self.headers.get_all("Content-Length", []))
        if not lengths:
            return self._refuse(411, "A request needs Content-Length and must not be chunked")
        # RFC 9112, section 6.3: it is not clear where such a request ends.
        if len(lengths) > 1 or "Transfer-Encoding" in self.headers or self.headers.defects:
            return self._refuse(
                400, "A request must have one Content-Length and no Transfer-Encoding"
            )
        (length,) = lengths
        if not re.fullmatch(r"[0-9]{1,15}", length) or int(length) > _LARGEST_REQUEST:
            return self._refuse(400, "Content-Length is malformed or too large")
        return self._answer(int(length))

    def _answer(self, length: int) -> None:
        ecr = self.server.service
        target, _, operation = self.headers.get("X-Amz-Target", "").partition(".")
        planned: Effect | None = "reset"
        buffer = self.server.buffers.take(length)
        body: Blob
        if ecr.begin_request(operation):
            body = self._read_body(buffer[: length // 2])
        else:
            body = self._read_body(buffer[:length])
            planned = ecr.end_request(operation, complete=len(body) == length)
            if len(body) < length:  # the client has closed the connection, or was silent
                ecr.keep_fragment(body)
                self.close_connection = True
                return None
        planned = planned or ecr.check_signature(self.headers.get("X-Amz-Date", ""))
        if planned == "reset":
            ecr.keep_fragment(body[: length // 2])
            body = b"{}"
        try:
            parameters = parse_body(body)
            public = _IS_PUBLIC[target]
        except (KeyError, RecursionError, ValueError) as error:
            return self._send(Reply(400, _NOT_A_REQUEST, repr(error)))
        self.server.buffers.give_back(buffer)
        del body, buffer  # so that they take no memory while the call is carried out
        endpoint_url = f"http://{self.headers['Host'].strip()}"
        return self._send(
            ecr.answer(operation, parameters, planned, public=public, endpoint_url=endpoint_url)
        )

    def _read_body(self, body: memoryview) -> memoryview:
        """Fill ``body``. Only what has arrived if the connection closes or is silent for long."""
        length, received = len(body), 0
        self.connection.settimeout(self.server.service.unknowns.longest_silence)
        with suppress(OSError):
            while received < length and (count := self.rfile.readinto1(body[received:])):
                received += count
        self.connection.settimeout(None)
        return body[:received]

    def _refuse(self, status: int, message: str) -> None:
        """Refuse a request that no SDK sends."""
        self._is_unread = self.close_connection = True
        body = {"__type": "InvalidParameterException", "message": message}
        self._send(Reply(status, json.dumps(body).encode(), "refused"))

    def _send(self, reply: Reply) -> None:
        if reply.delivery in ("request_lost", "reset", "lost"):
            if reply.delivery == "reset":
                # Closing then discards unsent data, and the client sees a reset.
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return
        body = bytes(range(128, 256)) if reply.delivery == "garbled" else reply.body
        self.send_response(reply.status)
        kind = "text/html" if body.startswith(b"<html") else "application/x-amz-json-1.1"
        self.send_header("Content-Type", kind)
        if reply.delivery == "drips":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amzn-RequestId", f"local-{len(self.server.service.calls)}")
        if reply.delivery == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.end_headers()
        while reply.delivery == "drips" and not self.server.service.stopped.wait(_DRIPS_EVERY):
            self.wfile.write(b"1\r\n \r\n")
            self.wfile.flush()
        if reply.delivery != "drips":
            self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: ``LocalECR.calls`` has the calls."""


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # the client may have closed it already
        connection.shutdown(socket.SHUT_RDWR)

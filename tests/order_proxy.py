"""A proxy in front of LocalECR that checks in which order the parts of an upload arrive."""

from __future__ import annotations

import io
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from typing_extensions import Self

_HTML_503 = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nContent-Length: 6\r\n"
    b"Connection: close\r\n\r\n<html>"
)


class OrderProxy:
    """Forwards each connection to LocalECR as it comes, and watches the parts.

    The request of a part must not be complete before the parts before it are confirmed, that is,
    before an answer with the last byte that ECR has was sent.
    """

    def __init__(self, endpoint_url: str, tls: ssl.SSLContext | None = None) -> None:
        self.too_early: list[str] = []
        """The parts that were complete before the parts before them were confirmed."""
        self.begun_ahead = 0
        """How many requests with parts were begun while another one was not answered."""
        self.answer_early: set[int] = set()
        """By number: the requests with parts that are answered 503 before they are complete."""
        self.hold_answers = 0
        """How many of the first confirmations wait until the request after them has begun."""
        address = urlsplit(endpoint_url)
        self._upstream = (address.hostname or "", address.port or 0)
        self._tls = tls
        self._lock = threading.Lock()
        self._has_begun = threading.Condition(self._lock)
        self._requests = 0
        self._confirmations = 0
        self._unanswered: set[_Connection] = set()
        self._unconfirmed: set[tuple[str, int]] = set()
        """The upload ID and first byte of each part that is complete and not confirmed."""
        self._last_byte: dict[str, int] = {}
        """By upload ID: the last byte that ECR has, by its latest answer."""
        self._stopped = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped = True
        for open_socket in (self._listener, *self._sockets):
            _shut(open_socket)
        for thread in self._threads:
            thread.join()
        for open_socket in (self._listener, *self._sockets):
            open_socket.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # it was shut
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):  # either side has closed its connection
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(self._upstream)
            for end in (client, server):  # or else each small piece waits for an acknowledgement
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, client, server)
            with self._lock:
                self._sockets |= {client, server}
            if self._stopped:
                _shut(client)
            self._start(connection.forward_answers)
            connection.forward_requests()

    # Called by connections

    def begin(self, connection: _Connection) -> bool:
        """The request of a part is arriving; whether to answer early."""
        with self._lock:
            self._requests += 1
            self._has_begun.notify_all()
            self.begun_ahead += bool(self._unanswered)
            self._unanswered.add(connection)
            return self._requests in self.answer_early

    def end(self, connection: _Connection) -> None:
        """The connection has got an answer, or was closed."""
        with self._lock:
            self._unanswered.discard(connection)

    def complete(self, upload_id: str, first_byte: int) -> None:
        """The last bytes of a part have arrived."""
        with self._lock:
            # Another process may have sent a part that ECR has.
            confirmed = self._last_byte.get(upload_id, -1)
            if any(
                upload == upload_id and confirmed < first < first_byte
                for upload, first in self._unconfirmed
            ):
                self.too_early.append(f"part at byte {first_byte} of upload {upload_id}")
            self._unconfirmed.add((upload_id, first_byte))

    def confirm(self, upload_id: str, first_byte: int, last_byte: int) -> None:
        """ECR has answered to a part that it has the layer up to ``last_byte``."""
        with self._lock:
            self._confirmations += 1
            number = self._confirmations
            if number <= self.hold_answers:
                self._has_begun.wait_for(lambda: self._requests > number, timeout=10)
            self._unconfirmed.discard((upload_id, first_byte))
            self._last_byte[upload_id] = last_byte


class _Connection:
    """One connection of a client, and that to LocalECR."""

    def __init__(self, proxy: OrderProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._part: tuple[str, int] | None = None
        """The upload ID and the first byte of the part whose answer is due."""

    def forward_requests(self) -> None:
        try:
            with self._client.makefile("rb") as file, suppress(OSError):
                while head := _read_head(file):
                    if not self._forward_request(head, file):
                        return
        finally:
            self._proxy.end(self)
            _shut(self._server)

    def _forward_request(self, head: bytes, file: io.BufferedReader) -> bool:
        """Forward a request; ``False`` if it is not complete."""
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        left = int(length[1]) if length else 0
        is_part, start = b".UploadLayerPart\r\n" in head, b""
        answer_early = is_part and self._proxy.begin(self)
        self._server.sendall(head)
        while left:
            piece = file.read1(min(left, 65_536))
            if not piece:
                return False
            left -= len(piece)
            if answer_early:
                self._client.sendall(_HTML_503)
                return False
            start = start if len(start) > 1000 else start + piece
            if is_part and not left:
                part = re.search(rb'"uploadId": "([^"]*)", "partFirstByte": (\d+)', start)
                assert part is not None
                self._part = (part[1].decode(), int(part[2]))
                self._proxy.complete(*self._part)
            self._server.sendall(piece)
        return True

    def forward_answers(self) -> None:
        with suppress(OSError):
            while piece := self._server.recv(65_536):
                answered = re.search(rb'(Valid)?ByteReceived": (-?\d+)', piece)
                if answered is not None and self._part is not None:
                    upload_id, first_byte = self._part
                    last_byte = int(answered[2])
                    if not answered[1]:  # it may be counted from the part's first byte
                        last_byte = max(first_byte, last_byte)
                    self._proxy.confirm(upload_id, first_byte, last_byte)
                self._proxy.end(self)
                self._client.sendall(piece)
        self._proxy.end(self)
        _shut(self._client)


def _read_head(file: io.BufferedReader) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = file.readline()
        if not line:
            return b""
        head += line
    return head


def _shut(open_socket: socket.socket) -> None:
    with suppress(OSError):
        open_socket.shutdown(socket.SHUT_RDWR)

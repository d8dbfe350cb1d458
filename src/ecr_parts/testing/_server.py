"""LocalECR: the rules of ECR served over real HTTP, on loopback."""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.loaders import Loader, create_loader
from typing_extensions import Self, override

from ecr_parts._limits import Limits
from ecr_parts._retry import CLIENT_CONFIG
from ecr_parts.testing._faults import Effect, Fault, Faults, Reply, Response, answer
from ecr_parts.testing._parameters import EcrError
from ecr_parts.testing._registry import Registry, Unknowns

_IS_PUBLIC = {"AmazonEC2ContainerRegistry_V20150921": False, "SpencerFrontendService": True}
_REGION = "us-east-1"
_DRIPS_EVERY = 0.05  # seconds
_LARGEST_REQUEST = 1024**3  # bytes
_READ = 1024**2  # bytes
_LOOPBACK = re.compile(r"(127(\.[0-9]{1,3}){3}|localhost|\[::1\])(:[0-9]+)?", re.IGNORECASE)
_NOT_A_REQUEST = b'{"__type": "SerializationException", "message": "Not a JSON 1.1 request"}'


@dataclass(frozen=True)
class Call:
    """A call that reached LocalECR."""

    __module__ = "ecr_parts.testing"

    operation: str
    first_byte: int | None
    """The first byte of the part, for UploadLayerPart; ``None`` if its request was cut off."""
    last_byte: int | None
    """The last byte of the part, inclusive."""
    outcome: str
    """``"ok"``, the fault that hit the call, the code of ECR's error, or ``"replaced"`` for an
    answer of ``LocalECR.respond``."""


class LocalECR:
    """A strict ECR on loopback: real HTTP, storage in memory.

    >>> with LocalECR() as ecr:
    ...     client = ecr.client()

    ``repositories`` exist from the start. ``limits`` and ``part_size`` (bytes) default to ECR's
    own; small ones keep tests small. ``unknowns`` selects its behaviour where that of ECR is not
    known. ``slow`` is the delay of the fault ``"slow"``, and ``processing_time`` the time that each
    part takes once its request is complete, in seconds. ``port=0`` picks a free port.
    """

    __module__ = "ecr_parts.testing"

    def __init__(
        self,
        repositories: Iterable[str] = ("demo",),
        *,
        limits: Limits | None = None,
        part_size: int | None = None,
        unknowns: Unknowns | None = None,
        slow: float = 1.0,
        processing_time: float = 0.0,
        port: int = 0,
    ) -> None:
        self.registry: Registry = Registry(
            repositories, limits=limits, part_size=part_size, unknowns=unknowns
        )
        """The content of the registry."""
        self.calls: list[Call] = []
        """All calls so far, in order, except malformed requests and those that the client broke
        off."""
        self._faults = Faults()
        self._unknowns = unknowns or Unknowns()
        self._slow = slow
        self._processing_time = processing_time
        self._incomplete: Counter[str] = Counter()
        """By operation: the number of requests that are being received."""
        self._port = port
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        state = "not running" if self._server is None else f"at {self.endpoint_url}"
        return f"<LocalECR {state}, repositories: {', '.join(self.registry.repositories) or None}>"

    def start(self) -> None:
        """Start to listen on 127.0.0.1."""
        if self._server is not None:
            raise RuntimeError("this LocalECR is already running")
        self._stopped.clear()
        self._server = _Server(self, self._port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), name="LocalECR", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and end all threads. What is stored is kept."""
        if self._server is None or self._thread is None:
            return
        self._stopped.set()
        self._server.shutdown()
        self._server.break_connections()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """The URL for clients."""
        if self._server is None:
            raise RuntimeError("this LocalECR is not running: call start(), or use it in a with")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def client(self, service: str = "ecr", **kwargs: object) -> BaseClient:
        """A botocore client for it (``"ecr"`` or ``"ecr-public"``), with ``CLIENT_CONFIG``.

        ``kwargs`` are passed to ``create_client`` and override what is set here.
        """
        settings: dict[str, Any] = {
            "region_name": _REGION,
            "aws_access_key_id": "local",
            "aws_secret_access_key": "local",
            "config": CLIENT_CONFIG.merge(Config(proxies={})),
        }
        if "endpoint_url" not in kwargs:
            settings["endpoint_url"] = self.endpoint_url
        session = botocore.session.Session()
        session.register_component("data_loader", _loader())
        client: BaseClient = session.create_client(service, **(settings | kwargs))
        return client

    def environ(self) -> dict[str, str]:
        """Environment variables that point the AWS SDKs and the AWS CLI at it."""
        return {
            "AWS_ENDPOINT_URL_ECR": self.endpoint_url,
            "AWS_ENDPOINT_URL_ECR_PUBLIC": self.endpoint_url,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def fail(self, operation: str, fault: Fault, *, call: int = 1, times: int = 1) -> None:
        """Inject ``fault`` into ``times`` calls of ``operation``; ``call=1`` is the next one.

        If several are planned for a call, the first one planned wins. Raises ``ValueError`` for
        unknown operations and faults.
        """
        if not isinstance(fault, str):
            raise TypeError(f"fault must be a str, not {fault!r}: use respond() for answers")
        with self._lock:
            self._faults.plan(operation, fault, call=call, times=times)

    def respond(
        self,
        operation: str,
        answer: Mapping[str, object] | bytes | EcrError,
        *,
        status: int = 200,
        call: int = 1,
        times: int = 1,
    ) -> None:
        """Answer ``times`` calls of ``operation`` with ``answer``; ``call=1`` is the next one.

        ``answer`` is a JSON object, a raw body with the HTTP ``status``, or an ``EcrError``. With
        an ``EcrError``, the call is not carried out. Otherwise it is, and its answer is replaced.
        """
        effect: Effect
        if isinstance(answer, EcrError):
            effect = answer
        elif isinstance(answer, bytes):
            effect = Response(status, answer)
        elif isinstance(answer, Mapping):
            effect = Response(status, json.dumps(dict(answer)).encode())
        else:
            raise TypeError(f"answer must be a mapping, bytes or an EcrError, not {answer!r}")
        with self._lock:
            self._faults.plan(operation, effect, call=call, times=times)

    def calls_of(self, operation: str) -> list[Call]:
        """The calls of ``operation`` so far, in order."""
        return [call for call in self.calls if call.operation == operation]

    def layer(self, repository: str, digest: str) -> bytes:
        """The bytes of a completed layer; ``KeyError`` if there is none."""
        with self._lock:
            layers = self.registry.repositories[repository].layers
            if digest not in layers:
                raise KeyError(f"repository {repository!r} has no layer {digest}")
            return b"".join(layers[digest].blobs)

    def _begin_request(self, operation: str) -> bool:
        """Whether the connection breaks in the middle of the request."""
        with self._lock:
            # Calls are counted when they are complete, because a client may break one off.
            if not self._incomplete[operation] and self._faults.peek(operation) == "reset":
                self._faults.next(operation)
                return True
            self._incomplete[operation] += 1
            return False

    def _end_request(self, operation: str, *, complete: bool) -> Effect | None:
        with self._lock:
            self._incomplete[operation] -= 1
            return self._faults.next(operation) if complete else None

    def _keep_fragment(self, body: bytes) -> None:
        """Store what arrived before a connection broke, if ``broken_part`` is ``"fragment"``."""
        if self._unknowns.broken_part == "fragment":
            with self._lock, suppress(EcrError):  # it may be another call, or at the wrong byte
                self.registry.call("UploadLayerPart", _fragment(body))

    def _answer(
        self,
        operation: str,
        parameters: dict[str, object],
        planned: Effect | None,
        public: bool,
    ) -> Reply:
        if operation == "UploadLayerPart" and self._processing_time:
            self._stopped.wait(self._processing_time)
        with self._lock:
            reply = answer(
                self.registry,
                operation,
                parameters,
                planned,
                public=public,
                error_namespace=self._unknowns.error_namespace,
            )
            first, last = parameters.get("partFirstByte"), parameters.get("partLastByte")
            self.calls.append(
                Call(
                    operation,
                    first if isinstance(first, int) else None,
                    last if isinstance(last, int) else None,
                    reply.outcome,
                )
            )
        if reply.delivery == "slow":
            self._stopped.wait(self._slow)
        return reply


class _Server(ThreadingHTTPServer):
    def __init__(self, ecr: LocalECR, port: int) -> None:
        self.ecr = ecr
        self._connections: set[socket.socket] = set()
        self._handlers: list[threading.Thread] = []
        super().__init__(("127.0.0.1", port), _Handler)

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
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

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that closed their connection."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # prints the traceback

    def break_connections(self) -> None:
        for connection in list(self._connections):
            _shut(connection)
        for handler in self._handlers:
            handler.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # buffered: header and body in separate packets would cost a round trip
    server: _Server

    @override
    def finish(self) -> None:
        with suppress(OSError):  # the client has closed its connection
            super().finish()
        self.rfile.close()

    def do_POST(self) -> None:
        # Web pages whose host name resolves to 127.0.0.1 must not reach it from a browser.
        if not _LOOPBACK.fullmatch(self.headers.get("Host", "")):
            return self._refuse(400, "LocalECR serves this machine only: Host must be loopback")
        length = self.headers.get("Content-Length", "")
        if not length:
            return self._refuse(411, "A request needs Content-Length and must not be chunked")
        if not re.fullmatch(r"[0-9]{1,15}", length) or int(length) > _LARGEST_REQUEST:
            return self._refuse(400, "Content-Length is malformed or too large")
        return self._answer(int(length))

    def _answer(self, length: int) -> None:
        ecr = self.server.ecr
        service, _, operation = self.headers.get("X-Amz-Target", "").partition(".")
        planned: Effect | None = "reset"
        if ecr._begin_request(operation):
            body = self.rfile.read(length // 2)
        else:
            body = self._read_body(length)
            planned = ecr._end_request(operation, complete=len(body) == length)
            if len(body) < length:  # the client has closed the connection, or was silent
                ecr._keep_fragment(body)
                self.close_connection = True
                return None
        if planned == "reset":
            ecr._keep_fragment(body[: length // 2])
            body = b"{}"
        try:
            parameters = _parameters(body)
            public = _IS_PUBLIC[service]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            return self._send(Reply(400, _NOT_A_REQUEST, repr(error)))
        return self._send(ecr._answer(operation, parameters, planned, public))

    def _read_body(self, length: int) -> bytes:
        """The body, or what has arrived of it when the connection closes or is silent for long."""
        body = bytearray()
        self.connection.settimeout(self.server.ecr._unknowns.longest_silence)
        with suppress(OSError):
            while len(body) < length and (
                piece := self.rfile.read1(min(length - len(body), _READ))
            ):
                body += piece
        self.connection.settimeout(None)
        return bytes(body)

    def _refuse(self, status: int, message: str) -> None:
        """Refuse a request that no SDK sends. Its body may be unread, so close the connection."""
        self.close_connection = True
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
        self.send_header("x-amzn-RequestId", f"local-{len(self.server.ecr.calls)}")
        if reply.delivery == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.end_headers()
        while reply.delivery == "drips" and not self.server.ecr._stopped.wait(_DRIPS_EVERY):
            self.wfile.write(b"1\r\n \r\n")
            self.wfile.flush()
        if reply.delivery != "drips":
            self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: ``LocalECR.calls`` has the calls."""


@cache
def _loader() -> Loader:
    """Shared, because most of a client's cost is loading the API's description."""
    return create_loader()


def _parameters(body: bytes) -> dict[str, Any]:
    parameters: Any = json.loads(body)
    if not isinstance(parameters, dict):
        raise TypeError("a request must be a JSON object")
    blob = parameters.get("layerPartBlob")
    if isinstance(blob, str):
        parameters["layerPartBlob"] = base64.b64decode(blob, validate=True)
    return parameters


def _fragment(body: bytes) -> dict[str, Any]:
    """The parameters of a request of which only the start arrived; empty if it has no blob."""
    base64_text = body.rpartition(b'"')[2]
    try:
        fragment = _parameters(body[: len(body) - len(base64_text) % 4] + b'"}')
        size = len(fragment["layerPartBlob"])
        fragment["partLastByte"] = fragment["partFirstByte"] + size - 1
    except (KeyError, RecursionError, TypeError, ValueError):
        return {}
    return fragment


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # the client may have closed it already
        connection.shutdown(socket.SHUT_RDWR)

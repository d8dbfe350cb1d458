"""A read-only registry (OCI distribution) over LocalECR's store, for clients to pull from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ecr_parts.testing import LocalECR


@contextmanager
def front(ecr: LocalECR) -> Iterator[str]:
    """Its ``host:port``."""

    class Front(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            content, media_type, digest = self.find()
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content or b"")))
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET" and content:
                self.wfile.write(content)

        def find(self) -> tuple[bytes | None, str, str]:
            if self.path == "/v2/":
                return b"{}", "application/json", ""
            name, kind, reference = self.path.removeprefix("/v2/").rsplit("/", 2)
            repository = ecr.registry.repositories[name]
            if kind == "manifests":
                digest = repository.tags.get(reference, reference)
                text, media_type = repository.manifests.get(digest, (None, "text/plain"))
                return None if text is None else text.encode(), media_type, digest
            if reference in repository.layers:
                return ecr.layer(name, reference), "application/octet-stream", reference
            return None, "text/plain", ""

        def log_message(self, *_args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()

"""A read-only registry over HTTP (OCI distribution API), to pull images that LocalECR stores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ecr_parts.testing import LocalECR


@contextmanager
def front(ecr: LocalECR) -> Iterator[str]:
    """Serve the images of ``ecr`` on loopback; the value is ``host:port``."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            content, media_type, digest = self._find()
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content or b"")))
            if digest:
                self.send_header("Docker-Content-Digest", digest)
            self.end_headers()
            if self.command == "GET" and content:
                self.wfile.write(content)

        def _find(self) -> tuple[bytes | None, str, str]:
            """The content, its media type and its digest; ``None`` if there is none."""
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
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

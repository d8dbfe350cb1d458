"""A web service that passes uploads on to ECR while it receives them.

    python examples/web_upload.py

It keeps a few parts of each upload in memory, and no files. If a client disconnects, its layer is
abandoned, and the service goes on. Here, two clients upload to it: one leaves in the middle.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

CONTENT = os.urandom(25 * 1024 * 1024)


async def receive(uploader: LayerUploader, reader: asyncio.StreamReader) -> str:
    """Receive the body of a request. Returns the digest of the layer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"(?i)^content-length: (\d+)", head, re.MULTILINE)
    left = int(length[1]) if length else 0
    # What waits for ECR runs in threads: the event loop serves other clients meanwhile. If the
    # coroutine is cancelled, or the client is gone, the exception abandons the layer.
    with uploader.open_layer(size=left) as file:
        while left:
            chunk = await reader.readexactly(min(left, 1024 * 1024))
            await asyncio.to_thread(file.write, chunk)
            left -= len(chunk)
        layer = await asyncio.to_thread(file.complete)
    return layer.digest


async def serve(
    uploader: LayerUploader, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Handle a request."""
    try:
        body = await receive(uploader, reader)
        writer.write(f"HTTP/1.1 201 Created\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
    except asyncio.IncompleteReadError:
        print("a client left: its layer is abandoned")
    finally:
        writer.close()


async def upload(port: int, content: bytes) -> str:
    """Act as a client that sends ``content``. Returns the answer; if content is missing, none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /layer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(CONTENT) + content)
    await writer.drain()
    answer = await reader.read() if content == CONTENT else b""
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def main() -> None:
    """Run the service, with two clients at a time."""
    with LocalECR() as ecr:
        uploader = LayerUploader(ecr.client(), "demo")
        service = await asyncio.start_server(
            lambda reader, writer: serve(uploader, reader, writer), "127.0.0.1", 0
        )
        async with service:
            port = service.sockets[0].getsockname()[1]
            _, answer = await asyncio.gather(
                upload(port, CONTENT[:15_000_000]), upload(port, CONTENT)
            )
        print(answer.splitlines()[0], answer.splitlines()[-1])
        digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        assert ecr.layer("demo", digest) == CONTENT
        assert len(ecr.calls_of("CompleteLayerUpload")) == 1


if __name__ == "__main__":
    asyncio.run(main())

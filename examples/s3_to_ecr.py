"""Upload an S3 object as a layer, without a temporary file.

The object is read while it is sent. Because its size is known, a download that ends early is not
completed. Here, a few lines serve the object in place of S3, and a local ECR receives it.
"""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import botocore.session

from ecr_parts import LayerUploader, UploadedLayer
from ecr_parts.testing import LocalECR

CONTENT = os.urandom(12 * 1024 * 1024)


def upload_object(s3: Any, bucket: str, key: str, uploader: LayerUploader) -> UploadedLayer:
    """Upload an object. If the same layer was uploaded before, it is sent again: pass a digest."""
    found = s3.get_object(Bucket=bucket, Key=key)
    digest = found["Metadata"].get("layer-digest")  # if the program that wrote the object knew it
    with found["Body"] as body:
        return uploader.upload(body, size=found["ContentLength"], digest=digest)


class Bucket(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_arguments: object) -> None:
        pass


def main() -> None:
    with HTTPServer(("127.0.0.1", 0), Bucket) as server, LocalECR() as ecr:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        s3 = botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        layer = upload_object(s3, "bucket", "layer.tar.gz", LayerUploader(ecr.client(), "demo"))
        server.shutdown()
        assert ecr.layer("demo", layer.digest) == CONTENT
        print(f"{layer.size:,} bytes of the object arrived as {len(layer.parts)} parts")


if __name__ == "__main__":
    main()

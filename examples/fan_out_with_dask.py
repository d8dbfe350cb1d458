"""Upload layers from the workers of a Dask cluster, then put the image manifest.

    python examples/fan_out_with_dask.py [SCHEDULER]

Each worker process has its own uploader and reads its layers itself, so the files must be
accessible from every worker. SCHEDULER is the address of a running cluster. Without it, the script
starts a cluster of two local processes. The layers are uploaded to a local ECR. To use a cluster on
other machines, create a client for AWS in ``get_uploader``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from ecr_parts import LayerUploader, UploadedLayer
from ecr_parts.testing import LocalECR

MIB = 1024 * 1024
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@cache
def get_uploader(endpoint_url: str) -> LayerUploader:
    """Return the uploader of this worker process.

    For AWS, create the client with ``botocore.session.get_session().create_client("ecr")``.
    """
    return LayerUploader(LocalECR().client(endpoint_url=endpoint_url), "demo")


def upload(endpoint_url: str, path: str) -> UploadedLayer:
    """Upload one layer. This runs on a worker, and the result is pickled."""
    return get_uploader(endpoint_url).upload(path)


def main(cluster: Any) -> None:
    """Push an image with four layers and a config."""
    with (
        LocalECR(["demo"]) as ecr,
        Client(cluster) as dask,
        tempfile.TemporaryDirectory() as directory,
    ):
        layer_paths = [Path(directory) / f"layer-{i}.tar" for i in range(4)]
        for path in layer_paths:
            path.write_bytes(os.urandom(12 * MIB))
        config_path = Path(directory) / "config.json"
        config_path.write_text('{"architecture": "amd64", "os": "linux"}')

        paths = [str(path) for path in (*layer_paths, config_path)]
        futures = dask.map(upload, [ecr.endpoint_url] * len(paths), paths)
        *layers, config = dask.gather(futures)

        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER) for layer in layers],
        }
        client: Any = ecr.client()
        response = client.put_image(
            repositoryName="demo", imageManifest=json.dumps(manifest), imageTag="latest"
        )
        for path, layer in zip(layer_paths, layers, strict=True):
            digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
            result = "digest matches" if layer.digest == digest else "DIGEST DOES NOT MATCH"
            print(f"{layer.digest}  {layer.size:,} bytes  {result}")
        print(f"put manifest {response['image']['imageId']['imageDigest']} as latest")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            main(cluster)

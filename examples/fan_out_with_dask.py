"""Layers pushed by the workers of a Dask cluster, and the manifest put at the end.

    python examples/fan_out_with_dask.py [SCHEDULER]

Past one machine: each worker has an uploader of its own and reads the layers where it can reach
them. SCHEDULER is the address of a cluster; without it one of two processes is started here. The
layers go to a local ECR, so a cluster of other machines takes a client for AWS in ``uploader``.
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
def uploader(url: str) -> LayerUploader:
    """One a worker. With AWS: a client of ``botocore.session.get_session()``."""
    return LayerUploader(LocalECR().client(endpoint_url=url), "demo")


def push(url: str, path: str) -> UploadedLayer:
    """Runs on a worker; the result comes back pickled."""
    return uploader(url).upload(path)


def main(cluster: Any) -> None:
    """Push four layers, a config, and their manifest."""
    with (
        LocalECR(["demo"]) as ecr,
        Client(cluster) as dask,
        tempfile.TemporaryDirectory() as directory,
    ):
        paths = [Path(directory) / f"layer-{i}.tar" for i in range(4)]
        for path in paths:
            path.write_bytes(os.urandom(12 * MIB))
        config = Path(directory) / "config.json"
        config.write_text('{"architecture": "amd64", "os": "linux"}')

        futures = dask.map(push, [ecr.endpoint_url] * 5, [str(p) for p in (*paths, config)])
        *layers, configuration = dask.gather(futures)

        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": configuration.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER) for layer in layers],
        }
        client: Any = ecr.client()
        put = client.put_image(
            repositoryName="demo", imageManifest=json.dumps(manifest), imageTag="latest"
        )
        for path, layer in zip(paths, layers, strict=True):
            whole = hashlib.sha256(path.read_bytes()).hexdigest() == layer.digest.partition(":")[2]
            print(f"{layer.digest}  {layer.size:,} bytes  {'whole' if whole else 'BROKEN'}")
        print(f"put {put['image']['imageId']['imageDigest']} as latest")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as local:
            main(local)

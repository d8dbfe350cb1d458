"""Calls of ECR's API through a plain botocore client."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError


class Caller:
    """Calls ECR for repository ``demo``; returns the answer, or the response of an error."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        if method != "describe_repositories":
            parameters = {"repositoryName": "demo", **parameters}
        try:
            answer = getattr(self.client, method)(**parameters)
        except ClientError as error:
            answer = {"code": error.response["Error"]["Code"], **error.response}
        del answer["ResponseMetadata"]
        answer.pop("Error", None)
        return dict(answer)

    def initiate(self) -> str:
        return str(self("initiate_layer_upload")["uploadId"])

    def part(self, upload_id: str, first: int, blob: bytes, last: int | None = None) -> Any:
        return self(
            "upload_layer_part",
            uploadId=upload_id,
            partFirstByte=first,
            partLastByte=first + len(blob) - 1 if last is None else last,
            layerPartBlob=blob,
        )

    def complete(self, upload_id: str, *digests: str) -> Any:
        return self("complete_layer_upload", uploadId=upload_id, layerDigests=digests)

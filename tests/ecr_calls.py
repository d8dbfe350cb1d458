"""Calls of ECR's API through a plain botocore client."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError


class PushingClient:
    """A client of which only the methods are left that a push cannot do without."""

    def __init__(self, client: Any) -> None:
        self.initiate_layer_upload = client.initiate_layer_upload
        self.upload_layer_part = client.upload_layer_part
        self.complete_layer_upload = client.complete_layer_upload
        self.batch_check_layer_availability = client.batch_check_layer_availability
        self.put_image = client.put_image


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

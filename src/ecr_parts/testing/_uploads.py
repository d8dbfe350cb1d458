"""ECR's rules for layers, as far as they are known."""

from __future__ import annotations

import uuid

from ecr_parts._base.validation import is_digest
from ecr_parts.testing._content import Content, Layer, Upload
from ecr_parts.testing._parameters import RESTORE_LAYER, EcrError, Request, invalid

_LAYER_MEDIA_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


def initiate_upload(content: Content, request: Request) -> dict[str, object]:
    """InitiateLayerUpload."""
    repository = content.repository(request)
    content.uploads_started += 1
    number = uuid.UUID(int=content.uploads_started)
    upload_id = str(uuid.uuid4() if content.random_upload_ids else number)
    repository.uploads[upload_id] = Upload()
    return {"uploadId": upload_id, "partSize": content.part_size}


def upload_part(content: Content, request: Request) -> dict[str, object]:
    """UploadLayerPart."""
    upload = _find_upload(content, request)
    first, last = request.get("partFirstByte"), request.get("partLastByte")
    blob = request.get("layerPartBlob")
    if first != upload.size:
        raise EcrError(
            "InvalidLayerPartException",
            f"First byte of the layer part is {first} instead of {upload.size}",
            **request.echo(uploadId=request.get("uploadId"), **_last_valid(content, upload)),
        )
    largest = content.unknowns.largest_part or request.limits.max_part
    if not 1 <= len(blob) <= largest:
        raise invalid("layerPartBlob", f"must have 1 to {largest} bytes")
    if last - first + 1 != len(blob):
        raise invalid("partLastByte", f"is {last}, and the part has {len(blob)} bytes")
    if len(upload.blobs) == request.limits.max_parts:
        raise EcrError("LimitExceededException", "The layer has too many parts")
    if last >= request.limits.max_layer:
        raise EcrError("LimitExceededException", "The layer is too large")
    upload.store(blob)
    if content.unknowns.last_byte_received == "in the part":
        last -= first
    return request.echo(uploadId=request.get("uploadId"), lastByteReceived=last)


def complete_upload(content: Content, request: Request) -> dict[str, object]:
    """CompleteLayerUpload."""
    repository = content.repository(request)
    upload_id, digests = request.get("uploadId"), request.get("layerDigests")
    code = content.unknowns.completed_again
    if upload_id in repository.completed and code == "LayerAlreadyExistsException":
        raise EcrError(code, f"The layer of upload '{upload_id}' already exists")
    upload = _find_upload(content, request)
    if not upload.blobs:
        raise EcrError(
            "EmptyUploadException",
            f"The upload with id '{upload_id}' cannot be completed because it does not have any "
            "parts",
        )
    if any(len(blob) < request.limits.min_part for blob in upload.blobs[:-1]):
        raise EcrError(
            "LayerPartTooSmallException",
            "All layer parts except the last part should be at least 5MB",
        )
    digest = f"sha256:{upload.hash.hexdigest()}"
    if digest not in digests:
        raise EcrError(
            "InvalidLayerException",
            "None of the provided layer digests match the calculated layer digest",
        )
    del repository.uploads[upload_id]
    repository.completed.add(upload_id)
    if (existing := repository.layers.get(digest)) is not None:
        archived = f", but is archived: {RESTORE_LAYER}" if existing.status == "ARCHIVED" else ""
        raise EcrError(
            "LayerAlreadyExistsException", f"The layer {digest} already exists{archived}"
        )
    repository.layers[digest] = Layer(
        upload.blobs,
        upload.size,
        lag=content.unknowns.availability_lag,
        image_lag=content.unknowns.image_lag,
    )
    return request.echo(uploadId=upload_id, layerDigest=digest)


def check_availability(content: Content, request: Request) -> dict[str, object]:
    """BatchCheckLayerAvailability."""
    repository = content.repository(request)
    layers: list[dict[str, object]] = []
    failures: list[dict[str, object]] = []
    for digest in request.get("layerDigests"):
        layer = repository.layers.get(digest)
        if layer is not None and layer.lag == 0:
            layers.append(
                {
                    "layerDigest": digest,
                    "layerAvailability": layer.status,
                    "layerSize": layer.size,
                    "mediaType": _LAYER_MEDIA_TYPE,
                }
            )
            continue
        if layer is not None:
            layer.lag -= 1
        if not is_digest(digest):
            failures.append(_failure(digest, "InvalidLayerDigest", "is not a sha256 digest"))
        elif content.unknowns.missing_layers == "layers":
            layers.append({"layerDigest": digest, "layerAvailability": "UNAVAILABLE"})
        else:
            failures.append(_failure(digest, "MissingLayerDigest", "was not found"))
    if content.unknowns.missing_layers == "failures alone" and not layers:
        return {"failures": failures}
    return {"layers": layers, "failures": failures}


def get_download_url(content: Content, request: Request) -> dict[str, object]:
    """GetDownloadUrlForLayer."""
    repository, digest = content.repository(request), request.get("layerDigest")
    layer = repository.layers.get(digest)
    if layer is None:
        raise EcrError(
            "LayersNotFoundException",
            f"The layer with digest '{digest}' could not be found in the repository with name "
            f"'{repository.name}'",
        )
    problem = f"archived: {RESTORE_LAYER}" if layer.status == "ARCHIVED" else ""
    if not any(digest in image.layers for image in repository.images.values()):
        # "You can only get URLs for image layers that are referenced in an image", says AWS.
        problem = "in no image of the repository"
    if problem:
        raise EcrError(
            "LayerInaccessibleException", f"The layer with digest '{digest}' is {problem}"
        )
    url = f"{request.endpoint_url}/v2/{repository.name}/blobs/{digest}"
    return {"downloadUrl": url, "layerDigest": digest}


def _find_upload(content: Content, request: Request) -> Upload:
    upload_id = request.get("uploadId")
    repository = content.repository(request)
    if upload_id not in repository.uploads:
        raise EcrError(
            "UploadNotFoundException",
            f"The upload with id '{upload_id}' could not be found in the repository with name "
            f"'{request.repository_name}' in the registry with id '{request.registry_id}'",
        )
    return repository.uploads[upload_id]


def _last_valid(content: Content, upload: Upload) -> dict[str, object]:
    if upload.size:
        return {"lastValidByteReceived": upload.size - 1}
    nothing = content.unknowns.nothing_stored
    return {} if nothing == "absent" else {"lastValidByteReceived": nothing}


def _failure(digest: str, code: str, reason: str) -> dict[str, object]:
    return {
        "layerDigest": digest,
        "failureCode": code,
        "failureReason": f"Layer digest '{digest}' {reason}",
    }

"""ECR's rules for uploads and images, as far as they are known. No I/O, no clock."""

# No ``from __future__ import annotations`` here; ``ecr_parts._models`` has the reason.

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from ecr_parts._limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
from ecr_parts._validation import check_int, check_positive, is_digest
from ecr_parts.testing._parameters import (
    REGISTRY_ID,
    REPOSITORY_NAME,
    EcrError,
    Request,
    descriptor_digests,
    invalid,
    parse_manifest,
)

OPERATIONS = (
    "BatchCheckLayerAvailability",
    "BatchGetImage",
    "CompleteLayerUpload",
    "CreateRepository",
    "InitiateLayerUpload",
    "PutImage",
    "UploadLayerPart",
)
_PART_SIZE = 10_485_760  # bytes, as in the examples of the AWS documentation
_LAYER_MEDIA_TYPE = "application/vnd.docker.image.rootfs.diff.tar"
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True)
class Unknowns:
    """How ECR behaves where that is not documented: a switch for each open question.

    A client should work with every value of each switch. Raises ``TypeError`` and ``ValueError``
    for other values.
    """

    __module__ = "ecr_parts.testing"

    nothing_stored: Literal[-1, 0, "absent"] = -1
    """``lastValidByteReceived`` of a refused part if nothing of the layer is stored."""
    completed_again: Literal["UploadNotFoundException", "LayerAlreadyExistsException"] = (
        "UploadNotFoundException"
    )
    """The error of a second CompleteLayerUpload of the same upload."""
    missing_layers: Literal["failures", "layers", "failures alone"] = "failures"
    """Where BatchCheckLayerAvailability lists a missing layer: in ``failures``, or in ``layers`` as
    ``UNAVAILABLE``. With ``"failures alone"``, an empty ``layers`` is left out of the answer."""
    availability_lag: int = 0
    """How many times a completed layer is still reported as missing."""
    broken_part: Literal["nothing", "fragment"] = "nothing"
    """What is stored of a part if the connection breaks while it is sent."""
    last_byte_received: Literal["in the layer", "in the part"] = "in the layer"
    """Where ``lastByteReceived`` counts from. AWS's reference says "in the request"."""
    longest_silence: float | None = None
    """Seconds after which the connection of an incomplete request is closed if nothing arrives;
    ``None`` for never."""
    largest_part: int | None = None
    """The largest part that is accepted (bytes); ``None`` for that of the limits. AWS's API page
    says 20,971,520, its quotas page 10,485,760."""
    error_namespace: str = ""
    """The part before the ``#`` in an error's ``__type``; if empty, there is no ``#``."""

    def __post_init__(self) -> None:
        for field_ in fields(self):
            choices, value = get_args(field_.type), getattr(self, field_.name)
            known = any(value == choice and type(value) is type(choice) for choice in choices)
            if get_origin(field_.type) is Literal and not known:
                raise ValueError(f"{field_.name} must be one of {choices}, not {value!r}")
        if not isinstance(self.error_namespace, str):
            raise TypeError(f"error_namespace must be a str, not {self.error_namespace!r}")
        check_int("availability_lag", self.availability_lag, minimum=0)
        if self.longest_silence is not None:
            check_positive("longest_silence", self.longest_silence, "seconds")
        if self.largest_part is not None:
            check_int("largest_part", self.largest_part)


@dataclass
class Layer:
    """A completed layer."""

    blobs: list[bytes]
    size: int
    lag: int = 0
    status: Literal["AVAILABLE", "ARCHIVED"] = "AVAILABLE"


@dataclass
class Upload:
    """An upload that has not been completed."""

    blobs: list[bytes] = field(default_factory=list)
    size: int = 0
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def store(self, blob: bytes) -> None:
        """Append a part."""
        self.blobs.append(blob)
        self.size += len(blob)
        self.hash.update(blob)


@dataclass
class Repository:
    """The content of a repository."""

    immutable_tags: bool = False
    uploads: dict[str, Upload] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    layers: dict[str, Layer] = field(default_factory=dict)
    manifests: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By digest: the manifest's text and its media type."""
    tags: dict[str, str] = field(default_factory=dict)
    """By tag: the digest of the manifest."""


class Registry:
    """A registry in memory. ``call`` is its API.

    ``limits`` defaults to those of ECR or ECR Public. ``part_size`` (bytes) is what
    InitiateLayerUpload answers, by default 10 MiB or the maximum of ``limits``.
    """

    __module__ = "ecr_parts.testing"

    def __init__(
        self,
        repositories: Iterable[str] = (),
        *,
        limits: Limits | None = None,
        part_size: int | None = None,
        unknowns: Unknowns | None = None,
    ) -> None:
        if isinstance(repositories, str):
            raise TypeError("repositories must be an iterable of names, not a str")
        self.repositories: dict[str, Repository] = {name: Repository() for name in repositories}
        for name in self.repositories:
            if not REPOSITORY_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid repository name")
        self._limits = limits
        max_part = limits.max_part if limits else ECR_LIMITS.max_part
        self._part_size = part_size or min(_PART_SIZE, max_part)
        self._unknowns = unknowns or Unknowns()
        self._uploads_started = 0
        calls = (
            self._check_availability,
            self._get_images,
            self._complete,
            self._create,
            self._initiate,
            self._put_image,
            self._upload_part,
        )
        self._operations = dict(zip(OPERATIONS, calls, strict=True))

    def call(
        self, operation: str, parameters: Mapping[str, object], *, public: bool = False
    ) -> dict[str, object]:
        """Carry out a call to ECR or ECR Public, and return its answer. Raises ``EcrError``."""
        if operation not in self._operations or (public and operation == "BatchGetImage"):
            raise EcrError("UnknownOperationException", f"There is no operation {operation}")
        limits = self._limits or (ECR_PUBLIC_LIMITS if public else ECR_LIMITS)
        request = Request(parameters, limits)
        if public and request.registry_id != REGISTRY_ID:
            raise EcrError(
                "RegistryNotFoundException",
                f"The registry with id '{request.registry_id}' does not exist",
            )
        return self._operations[operation](request)

    def forget_upload(self, repository_name: str, upload_id: str) -> None:
        """Lose an upload, as ECR does after some time (how long is not documented)."""
        repository = self.repositories.get(repository_name)
        if repository is not None:
            repository.uploads.pop(upload_id, None)

    def _repository(self, request: Request) -> Repository:
        repository = self.repositories.get(request.repository_name)
        if repository is None or request.registry_id != REGISTRY_ID:
            raise EcrError(
                "RepositoryNotFoundException",
                f"The repository with name '{request.repository_name}' does not exist in the "
                f"registry with id '{request.registry_id}'",
            )
        return repository

    def _create(self, request: Request) -> dict[str, object]:
        name = request.repository_name
        if name in self.repositories:
            raise EcrError(
                "RepositoryAlreadyExistsException",
                f"The repository with name '{name}' already exists in the registry with id "
                f"'{request.registry_id}'",
            )
        mutability = request.text("imageTagMutability", "MUTABLE")
        self.repositories[name] = Repository(immutable_tags=mutability == "IMMUTABLE")
        return {
            "repository": request.echo(
                repositoryArn=f"arn:aws:ecr:us-east-1:{REGISTRY_ID}:repository/{name}",
                repositoryUri=f"{REGISTRY_ID}.dkr.ecr.us-east-1.amazonaws.com/{name}",
                imageTagMutability=mutability,
            )
        }

    def _initiate(self, request: Request) -> dict[str, object]:
        repository = self._repository(request)
        self._uploads_started += 1
        upload_id = str(uuid.UUID(int=self._uploads_started))
        repository.uploads[upload_id] = Upload()
        return {"uploadId": upload_id, "partSize": self._part_size}

    def _upload(self, request: Request) -> Upload:
        upload_id = request.text("uploadId")
        repository = self._repository(request)
        if upload_id not in repository.uploads:
            raise EcrError(
                "UploadNotFoundException",
                f"The upload with id '{upload_id}' could not be found in the repository with name "
                f"'{request.repository_name}' in the registry with id '{request.registry_id}'",
            )
        return repository.uploads[upload_id]

    def _upload_part(self, request: Request) -> dict[str, object]:
        upload = self._upload(request)
        first, last = request.number("partFirstByte"), request.number("partLastByte")
        blob = request.blob("layerPartBlob")
        if first != upload.size:
            raise EcrError(
                "InvalidLayerPartException",
                f"First byte of the layer part is {first} instead of {upload.size}",
                **request.echo(uploadId=request.text("uploadId"), **self._last_valid(upload)),
            )
        largest = self._unknowns.largest_part or request.limits.max_part
        if not 1 <= len(blob) <= largest:
            raise invalid("layerPartBlob", f"must have 1 to {largest} bytes")
        if last - first + 1 != len(blob):
            raise invalid("partLastByte", f"is {last}, and the part has {len(blob)} bytes")
        if len(upload.blobs) == request.limits.max_parts:
            raise EcrError("LimitExceededException", "The layer has too many parts")
        if last >= request.limits.max_layer:
            raise EcrError("LimitExceededException", "The layer is too large")
        upload.store(blob)
        if self._unknowns.last_byte_received == "in the part":
            last -= first
        return request.echo(uploadId=request.text("uploadId"), lastByteReceived=last)

    def _last_valid(self, upload: Upload) -> dict[str, object]:
        if upload.size:
            return {"lastValidByteReceived": upload.size - 1}
        nothing = self._unknowns.nothing_stored
        return {} if nothing == "absent" else {"lastValidByteReceived": nothing}

    def _complete(self, request: Request) -> dict[str, object]:
        repository = self._repository(request)
        upload_id, digests = request.text("uploadId"), request.items("layerDigests", str)
        code = self._unknowns.completed_again
        if upload_id in repository.completed and code == "LayerAlreadyExistsException":
            raise EcrError(code, f"The layer of upload '{upload_id}' already exists")
        upload = self._upload(request)
        if not upload.blobs:
            raise EcrError(
                "EmptyUploadException",
                f"The upload with id '{upload_id}' cannot be completed because it does not have "
                "any parts",
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
        if digest in repository.layers:
            raise EcrError("LayerAlreadyExistsException", f"The layer {digest} already exists")
        repository.layers[digest] = Layer(
            upload.blobs, upload.size, self._unknowns.availability_lag
        )
        return request.echo(uploadId=upload_id, layerDigest=digest)

    def _check_availability(self, request: Request) -> dict[str, object]:
        repository = self._repository(request)
        layers: list[dict[str, object]] = []
        failures: list[dict[str, object]] = []
        for digest in request.items("layerDigests", str):
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
            elif self._unknowns.missing_layers == "layers":
                layers.append({"layerDigest": digest, "layerAvailability": "UNAVAILABLE"})
            else:
                failures.append(_failure(digest, "MissingLayerDigest", "was not found"))
        if self._unknowns.missing_layers == "failures alone" and not layers:
            return {"failures": failures}
        return {"layers": layers, "failures": failures}

    def _put_image(self, request: Request) -> dict[str, object]:
        repository = self._repository(request)
        text, tag = request.text("imageManifest"), request.text("imageTag", "")
        manifest = parse_manifest(text)
        media_type = request.text("imageManifestMediaType", str(manifest.get("mediaType", "")))
        digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        if request.text("imageDigest", digest) != digest:
            raise EcrError(
                "ImageDigestDoesNotMatchException",
                f"The digest of the manifest is {digest}, not that of the request",
            )
        self._check_references(repository, media_type, manifest)
        if digest in repository.manifests and (not tag or repository.tags.get(tag) == digest):
            raise EcrError(
                "ImageAlreadyExistsException",
                f"Image with digest '{digest}' and tag '{tag}' already exists in the repository",
            )
        if repository.immutable_tags and repository.tags.get(tag, digest) != digest:
            raise EcrError(
                "ImageTagAlreadyExistsException",
                f"The image tag '{tag}' already exists in the '{request.repository_name}' "
                "repository and cannot be overwritten because the repository is immutable.",
            )
        repository.manifests[digest] = (text, media_type)
        if tag:
            repository.tags[tag] = digest
        return {"image": _image(request, repository, digest, tag)}

    def _check_references(
        self, repository: Repository, media_type: str, manifest: Mapping[str, Any]
    ) -> None:
        if media_type in _INDEXES:
            wanted = descriptor_digests(manifest, "manifests")
            code, known = "ReferencedImagesNotFoundException", set(repository.manifests)
        else:
            config = {"config": [manifest["config"]]} if "config" in manifest else {}
            wanted = descriptor_digests(config, "config") + descriptor_digests(manifest, "layers")
            code, known = "LayersNotFoundException", set(repository.layers)
        missing = [digest for digest in wanted if digest not in known]
        if missing:
            raise EcrError(code, f"Not found in the repository: {', '.join(missing)}")

    def _get_images(self, request: Request) -> dict[str, object]:
        repository = self._repository(request)
        images: list[object] = []
        failures: list[object] = []
        for image_id in request.items("imageIds", dict):
            tag, digest = image_id.get("imageTag", ""), image_id.get("imageDigest", "")
            if not isinstance(tag, str) or not isinstance(digest, str):
                raise invalid("imageIds", "has a member of the wrong type")
            digest = digest or repository.tags.get(tag, "")
            if digest in repository.manifests:
                images.append(_image(request, repository, digest, tag))
            else:
                failures.append(
                    {
                        "imageId": image_id,
                        "failureCode": "ImageNotFound",
                        "failureReason": "Requested image not found",
                    }
                )
        return {"images": images, "failures": failures}


def _image(request: Request, repository: Repository, digest: str, tag: str) -> dict[str, object]:
    text, media_type = repository.manifests[digest]
    return request.echo(
        imageId={"imageDigest": digest} | ({"imageTag": tag} if tag else {}),
        imageManifest=text,
        imageManifestMediaType=media_type,
    )


def _failure(digest: str, code: str, reason: str) -> dict[str, object]:
    return {
        "layerDigest": digest,
        "failureCode": code,
        "failureReason": f"Layer digest '{digest}' {reason}",
    }

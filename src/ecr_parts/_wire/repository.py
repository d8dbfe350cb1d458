"""The calls for one repository: what they are called with, and what their answers mean."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import tenacity
from botocore.exceptions import ClientError
from typing_extensions import Self

from ecr_parts._base.threads import Waiter
from ecr_parts._base.validation import short_repr
from ecr_parts._model.layers import Blob
from ecr_parts._model.parts import Part
from ecr_parts._wire.answers import (
    Answer,
    Availability,
    PartAnswer,
    check_complete_refusal,
    check_completed,
    check_put_image,
    parse_availability,
    parse_image_ids,
    parse_images,
    parse_mutability,
    parse_part_refusal,
    parse_put_image_refusal,
    parse_received,
    parse_repository_uri,
    parse_upload,
)
from ecr_parts._wire.api import offers, service_name
from ecr_parts._wire.call import Call, CallOptions, PartCall, Target, outcome_of
from ecr_parts._wire.failures import CallFailed
from ecr_parts._wire.registries import RepositoryUri
from ecr_parts._wire.request import encode_blob
from ecr_parts._wire.retry import Backoff
from ecr_parts._wire.uplink import Turn

_log = logging.getLogger("ecr_parts")
_T = TypeVar("_T")
MAX_DIGESTS = 100  # in one call (API reference)
_MAX_POLLS = 4  # availability checks after a completion, because ECR may lag
_MAX_PUTS = 5  # of one manifest that refers to something that ECR does not find
_NOT_FOUND = frozenset({"LayersNotFoundException", "ReferencedImagesNotFoundException"})
_NOT_CHECKED = "cannot check that %s is the repository's URI: %s"
_WITHOUT_ALIAS_CHECK = frozenset({"CreateRepository", "DescribeRepositories"})


class NotListedError(Exception):
    """Given to the retry policy while ECR does not list a layer yet. It is never raised."""


@dataclass(eq=False)
class AliasCheck:
    """Whether the alias in the URI of a public repository is that of the caller's registry.

    The API knows the registry of the credentials only, whatever the URI says.
    """

    uri: RepositoryUri
    is_done: bool = False
    """Several threads may find it false, and check it twice."""


@dataclass(frozen=True)
class Repository:
    """ECR's calls for one repository, repeated, their answers checked.

    All calls to ECR are made by this class. A call that fails for good raises ``CallFailed``,
    unless the method says something else.
    """

    target: Target
    options: CallOptions
    waiter: Waiter = field(default_factory=Waiter)
    alias: AliasCheck | None = None
    """What the first call checks; ``None`` if the repository was not named by an alias."""

    def with_waiter(self, waiter: Waiter) -> Self:
        """A copy whose calls wait with ``waiter``."""
        return replace(self, waiter=waiter)

    # Uploading a layer

    def initiate(self) -> tuple[str, int]:
        """Start an upload: its ID, and the part size (bytes) that ECR suggests."""
        return self._call("InitiateLayerUpload", {}, parse_upload)

    def prepare_part(
        self,
        upload_id: str,
        part: Part,
        slices: Iterable[Blob],
        file: io.BytesIO | None = None,
        thread: str = "call",
        *,
        smallest: bool = True,
    ) -> PartCall:
        """Encode a part, and return the call that sends it. May be called in any thread.

        ``slices`` and ``file`` are those of ``encode_blob``, ``thread`` and ``smallest`` those of
        ``Call``.
        """
        parameters: dict[str, object] = {
            **self.target.location,
            "uploadId": upload_id,
            "partFirstByte": part.first_byte,
            "partLastByte": part.last_byte,
        }
        if self.options.encodes:
            blob: object = encode_blob(parameters, slices, file)
        else:
            file = io.BytesIO() if file is None else file
            file.seek(0)
            file.writelines(slices)
            file.truncate()
            blob = file.getvalue()
        return PartCall(
            target=self.target,
            options=self.options,
            waiter=self.waiter,
            operation="UploadLayerPart",
            parameters={**parameters, "layerPartBlob": blob},
            parse=partial(parse_received, part),
            parse_refusal=parse_part_refusal,
            subject=f"bytes {part.first_byte}-{part.last_byte}",
            confirmation=PartAnswer(part.last_byte, refused=False),
            thread=thread,
            new_turn=partial(Turn, self.options.uplink, part.size, smallest=smallest),
            smallest=smallest,
            part=part,
        )

    def complete(self, upload_id: str, digest: str) -> None:
        """Complete an upload. It fails with ``DigestMismatchError`` if the bytes do not match."""
        self._call(
            "CompleteLayerUpload",
            {"uploadId": upload_id, "layerDigests": [digest]},
            partial(check_completed, digest),
            partial(check_complete_refusal, digest),
            f"upload {upload_id}",
        )

    # Layers that exist

    def availability(self, digests: Iterable[str]) -> dict[str, Availability]:
        """What ECR answers about any number of layers. It may omit those that it does not have."""
        wanted = list(digests)
        found: dict[str, Availability] = {}
        for i in range(0, len(wanted), MAX_DIGESTS):
            parameters = {"layerDigests": wanted[i : i + MAX_DIGESTS]}
            found |= self._call("BatchCheckLayerAvailability", parameters, parse_availability)
        return found

    def existing_sizes(self, wanted: Mapping[str, int | None]) -> dict[str, int]:
        """The sizes, in bytes, of those layers of ``wanted`` that exist with the wanted size."""
        sizes = {}
        for digest, layer in self.availability(wanted).items():
            if layer.status == "ARCHIVED":
                _log.info(
                    "%s is archived, so it counts as missing: UpdateImageStorageClass restores its "
                    "image",
                    digest,
                )
            size = wanted.get(digest) or layer.size
            if layer.is_available and size and layer.size in (None, size):
                sizes[digest] = size
        return sizes

    def poll_existing_size(self, digest: str, size: int | None) -> int | None:
        """The size, in bytes, of a layer that may have just been completed.

        ``None`` if ECR does not list it, or cannot be asked. Asks up to four times, because ECR may
        lag. Of the retry policy, only the waits are used.
        """
        backoff = Backoff(self.options.retrying, self.waiter, self.existing_sizes)
        while True:
            found = outcome_of(partial(self.existing_sizes, {digest: size}))
            if isinstance(found, CallFailed):
                _log.info("cannot check whether %s exists: %s", digest, found.error)
                return None
            if found or backoff.attempt == _MAX_POLLS:
                return found.get(digest)
            backoff.plan(NotListedError(digest))
            backoff.wait()

    # Manifests

    def has_images(self, digests: Collection[str]) -> bool:
        """Whether ECR has all of these manifests; ``False`` also if it cannot be asked."""
        if not offers(self.target.client, "DescribeImages"):
            return False
        wanted = list(digests)
        for i in range(0, len(wanted), MAX_DIGESTS):
            block = wanted[i : i + MAX_DIGESTS]
            parameters = {"imageIds": [{"imageDigest": digest} for digest in block]}
            found = self._ask("DescribeImages", parameters, parse_images)
            if isinstance(found, CallFailed):
                if found.code != "ImageNotFoundException":
                    _log.info("cannot ask for images: %s", found.error)
                return False
            if not found.issuperset(block):
                return False
        return True

    def put_image(self, digest: str, media_type: str, manifest: str, tag: str | None) -> None:
        """Put a manifest, unless ECR has it.

        If ECR does not find what the manifest refers to, tries up to five times: PutImage may lag
        behind completed layers, by public reports. Of the retry policy, only the waits are used.
        """
        parameters = {
            "imageManifest": manifest,
            "imageManifestMediaType": media_type,
            "imageDigest": digest,
            **({} if tag is None else {"imageTag": tag}),
        }
        put = partial(
            self._call,
            "PutImage",
            parameters,
            partial(check_put_image, digest),
            parse_put_image_refusal,
            digest if tag is None else f"{digest} as {tag}",
        )
        backoff = Backoff(self.options.retrying, self.waiter, self.put_image)
        while True:
            outcome = outcome_of(put)
            if not isinstance(outcome, CallFailed):
                return
            if tag is not None and outcome.code == "ImageTagAlreadyExistsException":
                self._check_tag(digest, tag, outcome)
                return
            if outcome.code not in _NOT_FOUND or backoff.attempt == _MAX_PUTS:
                raise outcome
            backoff.plan(NotListedError(digest))
            backoff.wait()

    def _check_tag(self, digest: str, tag: str, refusal: CallFailed) -> None:
        """Raise ``refusal`` unless the immutable tag is that of this very image.

        ECR refuses such a push, too: https://github.com/aws/containers-roadmap/issues/2179
        """
        found = self.digest_of_tag(tag)
        if found == digest:
            return
        if found is not None:
            refusal.error.args = (f"{refusal.error}. The tag is that of {found}",)
        raise refusal

    def digest_of_tag(self, tag: str) -> str | None:
        """The digest of the image that has a tag; ``None`` if none has it, or ECR cannot be asked.

        Roles that push have the permission for BatchGetImage more often than the other one.
        """
        for operation, parse in (
            ("BatchGetImage", parse_image_ids),
            ("DescribeImages", parse_images),
        ):
            if not offers(self.target.client, operation):
                continue
            found = self._ask(operation, {"imageIds": [{"imageTag": tag}]}, parse)
            if not isinstance(found, CallFailed):
                return next(iter(found), None)
            if found.code == "ImageNotFoundException":
                return None
            _log.info("cannot ask for the tag %s: %s", tag, found.error)
        return None

    def has_mutable_tags(self) -> bool:
        """Whether tags can be overwritten; ``True`` also if ECR cannot be asked."""
        if not offers(self.target.client, "DescribeRepositories"):
            return True
        found = self._describe(parse_mutability)
        if isinstance(found, CallFailed):
            _log.info("cannot ask whether tags are immutable: %s", found.error)
            return True
        return found

    def _describe(self, parse: Callable[[Answer], _T]) -> _T | CallFailed:
        location = dict(self.target.location)
        names = {"repositoryNames": [location.pop("repositoryName")]}
        return self._ask("DescribeRepositories", names, parse, location)

    def _check_alias(self, alias: AliasCheck) -> None:
        """Raise ``ValueError`` if ECR has the repository under another alias."""
        if not offers(self.target.client, "DescribeRepositories"):
            alias.is_done = True
            _log.warning(_NOT_CHECKED, alias.uri.text, "the client has no describe_repositories")
            return
        found = self._describe(parse_repository_uri)
        if isinstance(found, CallFailed):
            if found.code != "RepositoryNotFoundException":  # asked again once it may exist
                alias.is_done = True
                _log.warning(_NOT_CHECKED, alias.uri.text, found.error)
            return
        uri, public_alias = found
        if public_alias not in (None, alias.uri.public_alias):
            raise ValueError(
                f"the repository {alias.uri.name} of these credentials has the URI "
                f"{short_repr(uri)}, not {alias.uri.text}: pass that, or check the credentials"
            )
        alias.is_done = True

    def create_if_missing(self) -> None:
        """Create the repository, unless there is one. Raises the public error of a failed call."""
        probe = {"layerDigests": [f"sha256:{'0' * 64}"]}
        call = partial(self._call, "BatchCheckLayerAvailability", probe, parse_availability)
        found = outcome_of(call)
        if not isinstance(found, CallFailed):
            return
        if found.code != "RepositoryNotFoundException":
            raise found.error
        # That of ECR Public has no parameter for the registry: it is the caller's own.
        location = dict(self.target.location)
        if service_name(self.target.client) == "ecr-public":
            location.pop("registryId", None)
        create = partial(self._call, "CreateRepository", {}, lambda _answer: True)
        created = outcome_of(partial(create, location=location))
        if isinstance(created, CallFailed) and created.code != "RepositoryAlreadyExistsException":
            raise created.error
        _log.info("created the repository %s", self.target.repository_name)

    def _ask(
        self,
        operation: str,
        parameters: Mapping[str, object],
        parse: Callable[[Answer], _T],
        location: Mapping[str, object] | None = None,
    ) -> _T | CallFailed:
        """Ask what callers can do without, in at most two attempts. Returns the failure, if any."""
        retrying = self.options.retrying.copy(stop=tenacity.stop_after_attempt(2))
        asking = replace(self, options=replace(self.options, retrying=retrying))
        return outcome_of(partial(asking._call, operation, parameters, parse, location=location))

    def _call(
        self,
        operation: str,
        parameters: Mapping[str, object],
        parse: Callable[[Answer], _T],
        parse_refusal: Callable[[ClientError], _T | None] = lambda _error: None,
        subject: str = "",
        location: Mapping[str, object] | None = None,
    ) -> _T:
        alias = self.alias
        if alias is not None and not alias.is_done and operation not in _WITHOUT_ALIAS_CHECK:
            self._check_alias(alias)
        location = self.target.location if location is None else location
        return Call(
            target=self.target,
            options=self.options,
            waiter=self.waiter,
            operation=operation,
            parameters={**location, **parameters},
            parse=parse,
            parse_refusal=parse_refusal,
            subject=subject,
        ).settle()

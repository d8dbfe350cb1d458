"""LayerUploader: the public entry point."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import tenacity

from ecr_parts import _request
from ecr_parts._batch import BatchUpload
from ecr_parts._calls import AVAILABLE, Step, UploadCalls, check_digest
from ecr_parts._client import (
    EcrClient,
    Failed,
    RepositoryClient,
    require_ecr_client,
    service_name,
)
from ecr_parts._layer_upload import Layer, UploadedLayer, upload_layer
from ecr_parts._session import NextAction, UploadSession
from ecr_parts._validation import callback, name_or_id, shown, whole_number
from ecr_parts.chunker import Part
from ecr_parts.limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
from ecr_parts.retry import default_retrying
from ecr_parts.source import Blob, LayerSource, contiguous


class LayerUploader:
    """Uploads layers to one repository of Amazon ECR or ECR Public. Safe to share by threads.

    ``client`` is a botocore or boto3 client for ``ecr`` or ``ecr-public``, preferably made with
    ``CLIENT_CONFIG``. ``registry_id`` is the AWS account ID, where it is not the client's own.
    ``part_size`` (bytes) is what ECR answers unless given; ``limits`` are the service's own.
    Only the stop, wait and sleep of ``retrying``, a ``tenacity`` policy, are used; what is
    retried is decided here. ``attempt_timeout`` (seconds) bounds one attempt of a call in all, for
    a server whose answer has no end; after three such attempts a call fails. Nothing is sent
    before the first call of a method.

    The calls to ECR run in threads of this library, while the caller's thread waits. So Ctrl-C, or
    an exception raised by a signal handler or by ``progress``, comes out of every method within
    about a second, as the very object that was raised. Nothing is sent afterwards, unless the
    client is not botocore's: such a client cannot be stopped in the middle of a call.
    """

    def __init__(
        self,
        client: EcrClient,
        repository_name: str,
        *,
        registry_id: str | None = None,
        part_size: int | None = None,
        limits: Limits | None = None,
        retrying: tenacity.Retrying | None = None,
        attempt_timeout: float = 900,
    ) -> None:
        require_ecr_client(client)
        name_or_id("repository_name", repository_name)
        if registry_id is not None:
            name_or_id("registry_id", registry_id)
        if retrying is not None and not isinstance(retrying, tenacity.Retrying):
            raise TypeError(f"retrying must be a tenacity.Retrying, not {shown(retrying)}")
        if limits is None:
            public = service_name(client) == "ecr-public"
            limits = ECR_PUBLIC_LIMITS if public else ECR_LIMITS
        elif not isinstance(limits, Limits):
            raise TypeError(f"limits must be Limits, not {shown(limits)}")
        if part_size is not None:
            limits.check_part_size(part_size)
        _check_seconds("attempt_timeout", attempt_timeout)
        _request.watch(client)
        repository_client = RepositoryClient(
            client,
            repository_name,
            registry_id,
            retrying or default_retrying(),
            attempt_timeout,
            sends_prepared=_request.attach(client),
        )
        self._calls = UploadCalls(repository_client, limits, part_size)

    def upload(
        self,
        source: LayerSource,
        *,
        digest: str | None = None,
        size: int | None = None,
        check_existing: bool = True,
        session: UploadSession | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> UploadedLayer:
        """Upload a layer: it is at ECR, whole, when this returns.

        ``source`` is a path, bytes, a binary file object (read from where it stands) or an
        iterable of bytes. ``digest`` (``"sha256:…"``), if known, is proven by ECR and not
        computed here. ``size`` (bytes) helps with a stream: the right part size from the
        beginning, an error if it ends early, and nothing is read past it. ``check_existing`` asks
        ECR first and sends nothing that it has; a file without a ``digest`` is read once more
        for that.

        ``checkpoint`` is a file that makes the upload resumable: it is written after each part
        and deleted when the layer is there, and the next call with the same content goes on from
        it, in another process too, at the byte ECR has. ``session`` is the same without a file: an
        ``UploadSession`` from ``initiate``, from JSON or from an error, which is moved in place.
        The digest tells whether the content is the same; if it is not, or if ECR has lost the
        upload, it begins afresh. Both take a source that can be read again.

        ``progress(n)`` is called with the number of bytes newly confirmed by ECR, on this thread:
        first with what ECR had from before, negative when an upload had to start over, and 0 as a
        sign of life, before each attempt and wait and at least once a second during them. Their
        sum is the layer's size in the end. What it raises ends the upload.

        Raises ``EcrPartsError``; ``TypeError`` and ``ValueError`` for bad arguments; and
        whatever ``source`` and ``progress`` raise.
        """
        if digest is not None:
            check_digest(digest)
        if session is not None:
            self._own(session)
            if checkpoint is not None:
                raise ValueError("pass session or checkpoint, not both")
        callback("progress", progress)
        layer = Layer(source, digest=digest, size=size, checkpoint=checkpoint, progress=progress)
        return upload_layer(self._calls, layer, check_existing=check_existing, session=session)

    def upload_many(
        self,
        layers: Iterable[LayerSource | Layer],
        *,
        max_workers: int = 4,
        check_existing: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> list[UploadedLayer]:
        """Upload layers side by side: as many results as layers, in their order.

        Each of ``layers`` is a source, or a ``Layer`` where more is known of it. At most
        ``max_workers`` are under way at a time, and memory goes with that, not with the number of
        layers. Paths and buffers are read in threads of this call; the caller's files and
        iterators one after another in the caller's thread.

        A list (any sequence) of layers is checked before the first call, and ECR is asked for 100
        of them in one call. Another iterable is pulled as the workers take its layers, one more
        than they have room for: a file or a buffer must stay as it is until that many more were
        pulled, so do not refill a buffer that was given.

        Layers of equal digest are sent once: of a ``digest`` that is given, or that is computed
        before sending, as of paths and buffers with ``check_existing``. So is the same path or
        buffer in a list, in any case. What the caller's files and iterators hold is not known
        before they are sent, nor, without ``check_existing``, whether different paths hold equal
        content: these are sent each.

        ``progress`` is called for all layers together, and each ``Layer``'s for its own: one call
        at a time, on any thread. At the first error nothing new begins, what runs stops within
        about a second, and the error is raised; its ``layer`` says which it was.

        Raises as ``upload`` does; ``ValueError`` for a stream or a checkpoint that was passed
        twice.
        """
        return BatchUpload(self._calls, max_workers, check_existing, progress).upload(layers)

    def initiate(
        self, *, layer_size: int | None = None, layer_digest: str | None = None
    ) -> UploadSession:
        """Begin an upload to drive by ``upload_part`` and ``complete``.

        ``layer_size`` in bytes; where it is known, ``part_size`` of the session suits it.
        """
        if layer_size is not None:
            whole_number("layer_size", layer_size, at_least=0)
        self._calls.check_size(layer_size)
        if layer_digest is not None:
            check_digest(layer_digest)
        session = self._calls.new_session(layer_size, layer_digest)
        if isinstance(session, Failed):
            raise session.error
        return session

    def upload_part(self, session: UploadSession, blob: Blob) -> None:
        """Send ``blob``, the layer's bytes from ``session.next_byte`` on.

        Afterwards ``session.next_byte`` is where ECR stands: past the blob, or inside it, or
        further back or on. Read on from there; one loop covers every case.

        Raises ``ValueError`` for an empty or too large blob, for one past the layer's end, and
        for one that follows a part under ECR's minimum; ``UploadLostError`` where this upload
        cannot be completed any more: begin a new one.
        """
        self._own(session)
        part = self._part_of(session, blob)
        prepared = self._calls.client.prepare_part(session.upload_id, part, contiguous(blob))
        answered = False
        try:
            step = self._calls.send_part(session, part, prepared, replayable=True)
            answered = True
        finally:
            if not answered:
                session._share()  # what had left may still take effect
        _raise_if_over(step, session)

    def complete(self, session: UploadSession, digest: str) -> UploadedLayer:
        """Complete an upload: ECR checks that it received what ``digest`` says.

        Raises ``DigestMismatchError`` where it did not, ``ValueError`` where parts are missing.
        """
        self._own(session)
        check_digest(digest)
        if session.layer_digest not in (None, digest):
            raise ValueError(f"digest is {digest}, and the session's is {session.layer_digest}")
        size = session.next_byte
        if session.layer_size not in (None, size):
            raise ValueError(f"ECR has {size:,} of the layer's {session.layer_size:,} bytes")
        self._calls.limits.check_layer(size)
        step = self._calls.complete(session, digest, replayable=True)
        in_doubt = step.action in (NextAction.CHECK_COMPLETED, NextAction.CHECK_LOST)
        if not in_doubt or self._calls.settled_size(digest, size, step.settled_by) is None:
            _raise_if_over(step, session)
        return UploadedLayer(digest, size, step.existed)

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of ``digests`` that the repository does not have, archived ones among them."""
        if isinstance(digests, str):
            raise TypeError("digests is a str, and must be an iterable of them")
        wanted = dict.fromkeys(map(check_digest, digests))
        found = self._calls.availability_of(wanted)
        if isinstance(found, Failed):
            raise found.error
        return {
            digest
            for digest in wanted
            if digest not in found or found[digest].status not in AVAILABLE
        }

    def _own(self, session: UploadSession) -> None:
        if not isinstance(session, UploadSession):
            raise TypeError(f"session must be an UploadSession, not {shown(session)}")
        session._validate()  # its fields may have been changed since it was made
        here = (self._calls.client.repository_name, self._calls.client.registry_id)
        if (session.repository_name, session.registry_id) != here:
            raise ValueError(
                f"the session is of repository {session.repository_name!r} in registry "
                f"{session.registry_id!r}, and this uploader of {here[0]!r} in {here[1]!r}"
            )

    def _part_of(self, session: UploadSession, blob: Blob) -> Part:
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise TypeError(f"a part is bytes, not {type(blob).__name__}")
        size, limits = memoryview(blob).nbytes, self._calls.limits
        if not 1 <= size <= limits.max_part:
            raise ValueError(f"a part has 1 to {limits.max_part:,} bytes, not {size:,}")
        part = Part(session.next_byte, session.next_byte + size - 1)
        if session.layer_size is not None and part.last_byte >= session.layer_size:
            raise ValueError(f"{part} ends past the layer's {session.layer_size:,} bytes")
        if session._ended(limits.min_part):
            raise ValueError(
                f"the part before byte {part.first_byte} is under the minimum of "
                f"{limits.min_part:,} bytes, and only the layer's last part may be: send "
                f"parts of session.part_size, {session.part_size:,} bytes"
            )
        return part


def _raise_if_over(step: Step, session: UploadSession) -> None:
    """Raise what ended an upload that is driven by its user: nothing is started over for them."""
    if step.error is not None:
        step.error.session = session
        raise step.error


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {shown(value)}")
    if not value > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {shown(value)}")

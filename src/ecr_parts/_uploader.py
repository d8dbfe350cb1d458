"""``LayerUploader``, the public entry point."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import tenacity
from typing_extensions import Self, Unpack

from ecr_parts._base.frames import ClearOwnFrames
from ecr_parts._base.redaction import show_url
from ecr_parts._base.validation import check_callback, check_digest, short_repr
from ecr_parts._images.push import ImagePush, PushOptions
from ecr_parts._images.put import put_manifest
from ecr_parts._model.layers import Blob, Layer, LayerSource, PushedImage, UploadedLayer
from ecr_parts._model.limits import Limits
from ecr_parts._model.session import UploadSession
from ecr_parts._upload import single_steps
from ecr_parts._upload.batch import BatchOptions, BatchUpload
from ecr_parts._upload.handover import WrittenLayer
from ecr_parts._upload.layer import UploadOptions, upload_layer
from ecr_parts._upload.layer_file import LayerBlock, LayerFile
from ecr_parts._upload.plan import Planner
from ecr_parts._upload.setup import UploaderOptions, set_up
from ecr_parts._wire.api import EcrClient, endpoint_url
from ecr_parts._wire.call import answer_of
from ecr_parts._wire.clients import client_for
from ecr_parts._wire.repository import Repository


class LayerUploader:
    """Uploads layers to one repository of Amazon ECR or ECR Public. Can be shared by threads.

    ``client`` is a botocore or boto3 client for ``ecr`` or ``ecr-public``, ideally created with
    ``CLIENT_CONFIG``; ``for_repository`` creates one. ``repository_name`` may also be a URI, if it
    agrees with the client's service, region and endpoint. ``registry_id`` is the AWS account ID of
    the registry, if it is not the client's default. ``part_size`` (bytes) defaults to what ECR
    suggests, and ``limits`` to those of the service. ``retrying`` is a ``tenacity`` policy, of
    which only stop, wait and sleep are used: this library decides which errors are retried.
    ``attempt_timeout`` (seconds) limits each attempt of a call, in case a server never finishes its
    answer. While three attempts that exceeded it are still open, the calls of this uploader fail.
    Creating an uploader makes no calls. Raises ``TypeError`` and ``ValueError`` for bad arguments.

    While ECR processes a part, the next one is sent on a second connection, except for its last
    bytes, which wait until ECR has confirmed the part. ECR cannot process a request that is not
    complete, so it gets the parts in order. This was tested with LocalECR, not with ECR. It turns
    itself off, and says so at INFO, after two requests that were sent ahead for nothing, because
    they failed or their last bytes would have waited for more than 4 seconds, or after one that an
    event handler answered itself. ``overlap=False`` turns it off from the start, as is necessary
    where a proxy allows only one connection. It requires a botocore client that encodes JSON, as
    those for ``ecr`` do.

    ``max_bandwidth`` limits what is sent, in bytes per second of all layers of this uploader
    together. A part takes 4/3 of its size, because it is sent in base64. It requires a botocore
    client, and at least 65,536 bytes per second for each layer that is uploaded at a time.

    ECR is called from threads of this library while the caller's thread waits. So Ctrl-C, and any
    exception raised by a signal handler or by ``progress``, propagates unchanged from every method
    within about a second. Nothing is sent afterwards, unless the client is not botocore's: such a
    client cannot be stopped during a call. What was sent before may still take effect, so ECR may
    have more of the layer than was reported. A process that ``progress`` forks has none of these
    threads: if it returns from ``progress``, the call raises ``RuntimeError`` there, and goes on in
    its parent. If ``progress`` was called in a thread of this library, the process ends.
    """

    __module__ = "ecr_parts"

    def __init__(
        self,
        client: EcrClient,
        repository_name: str,
        *,
        registry_id: str | None = None,
        part_size: int | None = None,
        limits: Limits | None = None,
        retrying: tenacity.Retrying | None = None,
        overlap: bool = True,
        max_bandwidth: float | None = None,
        attempt_timeout: float = 900,
    ) -> None:
        self._repository, self._planner = set_up(
            client, repository_name, registry_id,
            part_size=part_size, limits=limits, retrying=retrying, overlap=overlap,
            max_bandwidth=max_bandwidth, attempt_timeout=attempt_timeout,
        )  # fmt: skip

    @classmethod
    def for_repository(
        cls,
        repository: str,
        *,
        public: bool = False,
        region: str | None = None,
        profile: str | None = None,
        endpoint_url: str | None = None,
        registry_id: str | None = None,
        **options: Unpack[UploaderOptions],
    ) -> Self:
        """Create an uploader and its client, with ``CLIENT_CONFIG``. Makes no call to ECR.

        ``repository`` is a name, or a URI such as
        ``012345678910.dkr.ecr.us-east-1.amazonaws.com/team/app``: that of any partition, of FIPS
        and dual-stack endpoints, of ECR Public (``public.ecr.aws/ALIAS/NAME``), or of a LocalECR
        (``127.0.0.1:PORT/NAME``). ``public`` is for the name of a repository at ECR Public. The
        region is that of the URI, ``region``, ``AWS_REGION``, or the one that botocore finds. The
        credentials are those of ``profile``, or those that botocore finds. ``options`` are those
        of ``LayerUploader``. If ECR reports that the alias in the URI of a public repository is not
        that of the credentials, the first call raises ``ValueError``.

        Raises ``TypeError`` and ``ValueError`` for bad arguments, if there is no region, and if
        the client cannot be created.
        """
        client = client_for(
            repository, public=public, region=region, profile=profile, endpoint_url=endpoint_url
        )
        return cls(client, repository, registry_id=registry_id, **options)

    @property
    def client(self) -> Any:
        """The client, for calls of your own: ``client.list_images(**uploader.location)``."""
        return self._repository.target.client

    @property
    def repository_name(self) -> str:
        """The name of the repository, without registry."""
        return self._repository.target.repository_name

    @property
    def location(self) -> dict[str, Any]:
        """The parameters of a call for the repository: its name, and the registry ID if set."""
        return dict(self._repository.target.location)

    def __repr__(self) -> str:
        target = self._repository.target
        endpoint = endpoint_url(target.client)
        registry = "" if target.registry_id is None else f", registry_id={target.registry_id!r}"
        at = f" at {show_url(endpoint)}" if endpoint else ""
        return f"<LayerUploader for repository {target.repository_name!r}{registry}{at}>"

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
        """Upload a layer. When this returns, the layer is complete at ECR.

        ``source`` is a path, bytes, a binary file object (read from its current position) or an
        iterable of bytes. ``digest`` (``"sha256:…"``) is verified by ECR; without it, the digest
        is computed locally. ``size`` (bytes) is useful for a stream: the parts get the right size
        from the start, a stream that ends early raises ``SourceChangedError``, and nothing is read
        past ``size`` bytes. ``check_existing`` asks ECR first, and sends nothing if the layer
        exists; for this, a file without ``digest`` is read twice.

        ``checkpoint`` is a file that makes the upload resumable. It is written after each part and
        deleted when the layer is complete. The next call with the same content resumes at the byte
        ECR has, even in another process. ``session`` does the same without a file: pass an
        ``UploadSession`` from ``initiate``, from JSON or from an error; it is updated in place. The
        digest tells whether the content is the same. If it is not, or if ECR has lost the upload,
        a new upload is started. ``checkpoint`` and ``session`` require a source that can be read
        again.

        ``progress(n)`` is called in the calling thread with the number of bytes newly confirmed by
        ECR. When an upload resumes, it is first called with the bytes that ECR has already. ``n``
        is negative if ECR has lost bytes or if the upload starts over. ``progress(0)`` is called
        while the source is hashed, before each attempt and each wait, and about once a second
        during them. The numbers add up to the layer's size. An exception from ``progress`` ends the
        upload.

        Raises ``EcrPartsError``; ``TypeError`` and ``ValueError`` for bad arguments; and whatever
        ``source`` and ``progress`` raise.
        """
        if digest is not None:
            check_digest("digest", digest)
        if session is not None:
            single_steps.check_target(self._repository.target, session)
            if checkpoint is not None:
                raise ValueError("pass session or checkpoint, not both")
        check_callback("progress", progress)
        layer = Layer(source, digest=digest, size=size, checkpoint=checkpoint, progress=progress)
        with ClearOwnFrames():
            return upload_layer(
                self._repository, self._planner, layer, UploadOptions(check_existing, session)
            )

    def upload_many(
        self,
        layers: Iterable[LayerSource | Layer],
        *,
        max_workers: int = 4,
        check_existing: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> list[UploadedLayer]:
        """Upload layers in parallel. The results are in the order of the layers.

        Each of ``layers`` is a source, or a ``Layer`` with a digest, size, checkpoint or progress
        of its own. At most ``max_workers`` layers are uploaded at a time; memory grows with that
        number, not with the number of layers. Paths and buffers are read in threads of this
        library. The caller's files and iterators are read in the calling thread, one at a time.

        If ``layers`` is a sequence, every layer is checked before the first call, as far as this is
        possible without reading it, and ECR is asked in batches of 100 which layers exist. Any
        other iterable is consumed lazily, at most one layer ahead of the workers. Relative paths
        are those of the working directory when the call begins, or when they are yielded. A file
        or a buffer must not change before the call returns, so do not yield the same buffer with
        new content.

        Layers with equal digests are sent once; the later results have ``existed=True`` and no
        ``parts``. This applies to a ``digest`` that is passed or computed beforehand, as it is for
        paths and buffers with ``check_existing``. The same path or buffer in a sequence is always
        sent once. The content of the caller's files and iterators is not known beforehand, so equal
        ones are each sent.

        ``progress`` is called for all layers together, ``Layer.progress`` for its layer only. Both
        are called in any thread, one call at a time. ``progress(0)`` is also called about once a
        second in the calling thread, while it waits. The first error stops all layers within about
        a second and is raised. If it is an error of one layer, its attribute ``layer`` is that
        layer, also for exceptions of your own.

        Raises what ``upload`` raises, and ``ValueError`` if a checkpoint is passed twice, or if a
        stream is passed twice in a sequence, or twice in succession in another iterable.
        """
        options = BatchOptions(max_workers, check_existing, progress)
        return BatchUpload(self._repository, self._planner, options).run(layers)

    def open_layer(
        self,
        *,
        compress: bool = False,
        digest: str | None = None,
        size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> AbstractContextManager[LayerFile]:
        """Open a layer to be written, as a file, in a ``with`` block.

        >>> with uploader.open_layer(compress=True) as file:
        ...     with tarfile.open(fileobj=file, mode="w|") as tar:
        ...         tar.add("app", "opt/app")
        >>> file.layer.digest, file.diff_id

        It is uploaded in parts while it is written. If the block ends normally, the layer is
        complete at ECR. If an exception ends it, nothing more is sent, and nothing is completed.
        Close or flush what wraps the file inside the block: a ``TarFile`` writes its end when it is
        closed. A wrapper that closes the file neither completes nor abandons the layer.

        ``compress`` compresses with gzip, by zlib at its default level in several threads. The
        digest depends on what is written and on the version of zlib. ``digest``, ``size`` and
        ``progress`` are those of ``upload``; ``progress`` is called in the thread that writes. A
        layer of one part or less is sent at the end, if ECR does not have it. A larger one is sent
        again each time, unless ``digest`` is passed, and cannot be resumed: for that, write a file
        and ``upload`` it.

        Raises ``EmptyLayerError`` and ``LayerTooLargeError``; ``TypeError`` and ``ValueError`` for
        bad arguments. The block raises what ``LayerFile.complete`` raises, and ``RuntimeError`` if
        no thread can be started.
        """
        check_callback("progress", progress)
        layer = WrittenLayer(self._repository, self._planner, compress, digest, size)
        return LayerBlock(layer, progress)

    def push_image(
        self,
        image: str | os.PathLike[str],
        *,
        name: str | None = None,
        tags: Iterable[str] | None = None,
        platforms: Iterable[str] | None = None,
        preserve_digests: bool = False,
        create_repository: bool = False,
        max_workers: int = 4,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> PushedImage:
        """Push an image: its blobs that ECR lacks, then its manifests, its tags last.

        ``image`` is the path of an OCI image layout, a docker archive or ``dir:``: a directory or a
        tar archive, which may be compressed. Of several images, ``name`` chooses one by its name,
        tag or digest; otherwise that whose repository or tag is that of the target. ``tags`` are
        the image's tags at ECR; without them, those that it has in the file. ``platforms``
        (``"linux/arm64"``) selects from an image for several platforms: one gives its image alone,
        several give an index. What the file lacks may be in the repository. If the file has one
        platform of several, that is pushed alone.

        Plain layers are compressed into temporary files, unless a signature that is in the file
        refers to them, and manifests are changed accordingly; everything else goes byte for byte.
        With ``preserve_digests``, nothing is changed. ``create_repository`` creates a repository
        that does not exist. An immutable tag may be pushed again with the same image only.
        ``checkpoint_dir`` is a directory, created if necessary, that makes the push resumable: a
        push that was killed continues each blob at the byte that ECR has. ``max_workers`` and
        ``progress`` are those of ``upload_many``. What is not as expected is logged as a warning.

        Raises ``InvalidImageError``; what ``upload_many`` raises; ``TypeError`` if the client has
        no ``put_image``; ``TypeError`` and ``ValueError`` for bad arguments; and what opening
        ``image`` raises. The error's ``manifests`` are the digests that were put before it.
        """
        options = PushOptions(
            name, tags, platforms, preserve_digests, create_repository, max_workers,
            checkpoint_dir, progress,
        )  # fmt: skip
        return push_observed(self, image, options)

    def put_manifest(
        self,
        manifest: Mapping[str, Any] | bytes | str,
        *,
        media_type: str | None = None,
        tags: Iterable[str] | None = None,
    ) -> PushedImage:
        """Put a manifest or an index whose layers, config or images ECR has.

        Bytes, which must be UTF-8, and text are put as they are, a mapping as JSON.
        ``media_type`` is needed if the document has no ``mediaType``. An immutable tag may be put
        again with the same manifest only. If ECR does not find what the manifest refers to, the
        call is repeated for some seconds, because it may lag behind completed layers.

        Raises ``InvalidImageError`` for a manifest that ECR would refuse; ``TypeError`` if the
        client has no ``put_image``; ``TypeError`` and ``ValueError`` for bad arguments, and for a
        media type that is missing or contradicts the document; ``ServiceError`` and
        ``UnexpectedResponseError``, whose ``manifests`` tell whether it was put under a tag.
        """
        with ClearOwnFrames():
            return put_manifest(self._repository, manifest, media_type, tags)

    def initiate(
        self, *, layer_size: int | None = None, layer_digest: str | None = None
    ) -> UploadSession:
        """Start an upload, to be continued with ``upload_part`` and ``complete``.

        If ``layer_size`` (bytes) is passed, ``part_size`` of the session is large enough for the
        layer. ``layer_digest`` is kept in the session, and ``complete`` accepts no other.

        Raises ``ServiceError`` and ``UnexpectedResponseError``; ``EmptyLayerError`` and
        ``LayerTooLargeError``; ``TypeError`` and ``ValueError`` for bad arguments.
        """
        with ClearOwnFrames():
            return single_steps.initiate(self._repository, self._planner, layer_size, layer_digest)

    def upload_part(self, session: UploadSession, blob: Blob) -> None:
        """Send ``blob``, the layer's bytes from ``session.next_byte`` on.

        Afterwards, continue from ``session.next_byte``. This is usually the byte after the blob,
        but may also be inside, before or beyond it. Pass raw bytes: data that is already base64
        would be encoded twice.

        Raises ``ValueError`` if the blob is empty, too large, ends past the layer, or follows a
        part below ECR's minimum; ``UploadLostError`` if this upload can no longer be completed:
        start a new one; ``ServiceError`` and ``UnexpectedResponseError``.
        """
        with ClearOwnFrames():
            single_steps.upload_part(self._repository, self._planner, session, blob)

    def complete(self, session: UploadSession, digest: str) -> UploadedLayer:
        """Complete an upload: ECR checks that the bytes it received match ``digest``.

        Raises ``DigestMismatchError`` if they do not, and ``ValueError`` if parts are missing;
        ``EmptyLayerError``, ``UploadLostError``, ``ServiceError`` and ``UnexpectedResponseError``.
        """
        with ClearOwnFrames():
            return single_steps.complete(self._repository, self._planner, session, digest)

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Return those ``digests`` that the repository does not have or has archived.

        There may be any number of them; ECR is asked in batches of 100. Raises ``ServiceError`` and
        ``UnexpectedResponseError``; ``TypeError`` and ``ValueError`` for bad digests.
        """
        if isinstance(digests, str) or not isinstance(digests, Iterable):
            raise TypeError(
                f"digests must be an iterable of digests, not {short_repr(digests)}: pass a list"
            )
        wanted = dict.fromkeys(check_digest("digest", digest) for digest in digests)
        with ClearOwnFrames():
            found = answer_of(partial(self._repository.availability, wanted))
        return {
            digest for digest in wanted if digest not in found or not found[digest].is_available
        }


def push_observed(
    uploader: LayerUploader, image: str | os.PathLike[str], options: PushOptions
) -> PushedImage:
    """``uploader.push_image``, with an observer."""
    push = ImagePush(uploader._repository, uploader._planner, image, options)
    with ClearOwnFrames():
        return push.run()


def internals_of(uploader: LayerUploader) -> tuple[Repository, Planner]:
    """The objects with which the command makes calls of its own."""
    return uploader._repository, uploader._planner

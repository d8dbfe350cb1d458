"""Pushing an image: its blobs first, then its manifests, its tags last."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ecr_parts._base.threads import Abandoned, Waiter
from ecr_parts._base.validation import check_callback, check_int, short_repr
from ecr_parts._base.workers import Stop, Workers
from ecr_parts._images.docker import (
    DockerArchive,
    StoredLayer,
    compress_layer,
    read_docker_archive,
)
from ecr_parts._images.files import open_image_files
from ecr_parts._images.layout import TAG, Image, read_layout
from ecr_parts._model.layers import Layer, PushedImage, UploadedLayer, is_path
from ecr_parts._upload.batch import BatchOptions, BatchUpload
from ecr_parts._upload.checkpoint import (
    BestEffortPath,
    checkpoint_name,
    raise_or_report,
)
from ecr_parts._upload.plan import Planner
from ecr_parts._wire.api import check_image_client
from ecr_parts._wire.call import outcome_of
from ecr_parts._wire.repository import Repository
from ecr_parts.errors import CheckpointError, EcrPartsError, InvalidImageError

_log = logging.getLogger("ecr_parts")
PLATFORM = re.compile(r"[a-z0-9]+(/[a-z0-9_.]+){1,2}")


def read_image(
    path: str | os.PathLike[str], platforms: tuple[str, ...] | None
) -> Image | DockerArchive:
    """The image at ``path``, checked. Raises ``InvalidImageError``, and what opening it raises."""
    files = open_image_files(path)
    if files.find("index.json") is not None:
        return read_layout(files, platforms)
    if os.path.isfile(path) and files.find("manifest.json") is not None:
        return read_docker_archive(files, platforms)
    raise InvalidImageError(
        f"{files.path!r} is not an image: it has neither index.json, as an OCI image layout has, "
        "nor manifest.json, as a docker archive has"
    )


@dataclass(frozen=True)
class PushOptions:
    """How an image is pushed. The fields are the arguments of ``LayerUploader.push_image``."""

    tags: Iterable[str] | None
    platforms: Iterable[str] | None
    max_workers: int
    checkpoint_dir: str | os.PathLike[str] | None
    progress: Callable[[int], object] | None


class ImagePush:
    """One call of ``push_image``."""

    def __init__(
        self,
        repository: Repository,
        planner: Planner,
        image: str | os.PathLike[str],
        options: PushOptions,
    ) -> None:
        check_image_client(repository.target.client)
        checkpoint_dir = options.checkpoint_dir
        if not is_path(image):
            raise TypeError(f"image must be a path, not {short_repr(image)}")
        if checkpoint_dir is not None and not is_path(checkpoint_dir):
            raise TypeError(f"checkpoint_dir must be a path, not {short_repr(checkpoint_dir)}")
        check_int("max_workers", options.max_workers)
        check_callback("progress", options.progress)
        self._path = os.path.abspath(image)  # the working directory may change
        self._tags = _check_names("tags", options.tags, TAG)
        self._platforms = _check_names("platforms", options.platforms, PLATFORM)
        if self._platforms == ():
            raise ValueError("platforms must not be empty: pass None for all of them")
        self._checkpoint_dir: Path | BestEffortPath | None = None
        if isinstance(checkpoint_dir, BestEffortPath):
            self._checkpoint_dir = checkpoint_dir
        elif checkpoint_dir is not None:
            self._checkpoint_dir = Path(checkpoint_dir).absolute()
        self._batch_options = BatchOptions(options.max_workers, progress=options.progress)
        self._progress = options.progress
        self._waiter = Waiter(lambda: self._notify(0))
        self._planner = planner
        self._batch_repository = repository
        self._repository = repository.with_waiter(self._waiter)
        self._compressed: dict[str, Layer] = {}
        """By diff ID."""
        self._put: list[str] = []
        """The digests of the manifests that were put."""

    def run(self) -> PushedImage:
        """Push the image."""
        try:
            with self._waiter, ExitStack() as temporary_files:
                return self._run(temporary_files)
        except EcrPartsError as error:
            if self._put and not error.manifests:  # ``progress`` may raise one of another push
                error.manifests = tuple(self._put)
            raise

    def _run(self, temporary_files: ExitStack) -> PushedImage:
        found = self._waiter.run("disk", partial(read_image, self._path, self._platforms))
        tags = found.tags if self._tags is None else self._tags
        image, layers = self._send_blobs(found, temporary_files)
        failed = outcome_of(partial(self._put_manifests, image, tags))
        if failed is not None and failed.code == "LayersNotFoundException":
            # ECR may delete layers that no image refers to, so upload them again.
            self._notify(-sum(layer.size for layer in layers))
            image, layers = self._send_blobs(found, temporary_files)
            failed = outcome_of(partial(self._put_manifests, image, tags))
        if failed is not None:
            raise failed.error
        root = image.manifests[-1]
        return PushedImage(root.digest, root.media_type, tags, layers)

    def _notify(self, newly_confirmed: int) -> None:
        if self._progress is not None:
            self._progress(newly_confirmed)

    # Blobs

    def _send_blobs(
        self, found: Image | DockerArchive, temporary_files: ExitStack
    ) -> tuple[Image, tuple[UploadedLayer, ...]]:
        """Upload the blobs that ECR lacks."""
        if self._checkpoint_dir is not None:
            self._waiter.run("disk", partial(_make_directory, self._checkpoint_dir))
        if isinstance(found, DockerArchive):
            image = self._compress(found, temporary_files)
        else:
            image = found
        blobs = [self._with_checkpoint(blob) for blob in image.blobs]
        batch = BatchUpload(self._batch_repository, self._planner, self._batch_options)
        return image, tuple(batch.run(blobs))

    def _with_checkpoint(self, blob: Layer) -> Layer:
        if self._checkpoint_dir is None:
            return blob
        name = checkpoint_name(str(blob.digest), self._repository.target.description)
        return replace(blob, checkpoint=self._checkpoint_dir / name)

    def _compress(self, archive: DockerArchive, temporary_files: ExitStack) -> Image:
        """Compress the layers. What is on the disk tells nothing about their content."""
        diff_ids = {layer.diff_id: layer for layer in archive.layers}
        missing = [layer for name, layer in diff_ids.items() if name not in self._compressed]
        self._check_disk_space(missing)
        self._compressed |= self._compress_all(missing, temporary_files)
        return archive.image(self._compressed)

    def _check_disk_space(self, layers: list[StoredLayer]) -> None:
        directory = tempfile.gettempdir()
        needed = sum(layer.region.size for layer in layers if not layer.is_compressed)
        free = shutil.disk_usage(directory).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"compressing the image's layers may need {needed:,} bytes, and {directory} has "
                f"{free:,}: set TMPDIR to a directory with more",
            )

    def _compress_all(
        self, layers: list[StoredLayer], temporary_files: ExitStack
    ) -> dict[str, Layer]:
        """Compress layers in parallel; by diff ID."""
        uncompressed = [layer.region.size for layer in layers if not layer.is_compressed]
        if uncompressed:
            _log.info(
                "compressing %d layers, %s bytes", len(uncompressed), f"{sum(uncompressed):,}"
            )
        stop = Stop()
        compressed: dict[str, Layer] = {}
        errors: list[BaseException] = []

        def heartbeat() -> None:
            stop.check()
            self._notify(0)

        def compress(layer: StoredLayer) -> None:
            try:
                blob = compress_layer(layer, temporary_files, stop.check)
                compressed[layer.diff_id] = blob
            except BaseException as error:
                if not stop.requested:
                    errors.append(error)
                    stop.requested = True
                raise

        with Waiter(heartbeat, stop.is_requested) as waiter:
            workers = Workers(self._batch_options.max_workers, waiter, stop)
            try:
                for layer in layers:
                    workers.submit(partial(compress, layer), max_waiting=len(layers))
                workers.finish()
            except Abandoned:
                pass  # because of an error, which is raised below
            finally:
                workers.stop()
        if errors:
            raise errors[0]
        return compressed

    # Manifests

    def _put_manifests(self, image: Image, tags: tuple[str, ...]) -> None:
        """Put all manifests, that of the image under each tag."""
        *others, root = image.manifests
        puts = [(manifest, None) for manifest in others] + [(root, tag) for tag in tags or (None,)]
        for manifest, tag in puts:
            self._repository.put_image(
                manifest.digest, manifest.media_type, manifest.content.decode(), tag
            )
            if manifest.digest not in self._put:
                self._put.append(manifest.digest)


def _make_directory(path: Path | BestEffortPath) -> None:
    name = os.fspath(path)
    try:
        Path(name).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = (
            f"the checkpoint directory {name!r} cannot be created: {error}. Pass another directory"
        )
        raise_or_report(path, CheckpointError(message), error)


def _check_names(
    name: str, values: Iterable[str] | None, pattern: re.Pattern[str]
) -> tuple[str, ...] | None:
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be an iterable of str, not {short_repr(values)}: pass a list")
    checked = tuple(dict.fromkeys(values))
    for value in checked:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be an iterable of str, not of {short_repr(value)}")
        if not pattern.fullmatch(value):
            raise ValueError(f"{name}: {short_repr(value)} does not match {pattern.pattern}")
    return checked

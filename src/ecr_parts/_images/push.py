"""Pushing an image: its blobs first, then its manifests, its tags last."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ecr_parts._base.temporary import check_free_space
from ecr_parts._base.threads import Waiter, check_current_task
from ecr_parts._base.validation import (
    check_callback,
    check_int,
    check_name,
    check_path,
    short_repr,
)
from ecr_parts._images.choice import TAG, Chosen, Wanted, choose, find_attached
from ecr_parts._images.contents import Contents, Descriptor, Manifest
from ecr_parts._images.docker import read_docker_archive
from ecr_parts._images.documents import read_json
from ecr_parts._images.files import image_error, open_image_files
from ecr_parts._images.layout import read_directory, read_layout, unknown_format
from ecr_parts._images.observer import PushObserver
from ecr_parts._images.plain import PlainLayer, prepare_layer
from ecr_parts._images.plan import Plan, make_plan
from ecr_parts._images.put import check_immutable_tags, check_names
from ecr_parts._images.rewrite import CompressedLayer
from ecr_parts._images.selection import absent_of, choose_leaves, leaves_of, select
from ecr_parts._model.layers import Layer, PushedImage, UnnamedFile, UploadedLayer, is_path
from ecr_parts._model.manifests import MANIFEST_TYPES
from ecr_parts._upload.batch import AddLayer, BatchOptions, BatchUpload
from ecr_parts._upload.checkpoint import BestEffortPath, checkpoint_name, raise_or_report
from ecr_parts._upload.plan import Planner
from ecr_parts._wire.api import check_image_client
from ecr_parts._wire.call import answer_of, outcome_of
from ecr_parts._wire.repository import Repository
from ecr_parts.errors import CheckpointError, EcrPartsError

PLATFORM = re.compile(r"[a-z0-9]+(/[a-z0-9_.-]+){1,2}")


@dataclass(frozen=True)
class PushOptions:
    """How an image is pushed. The fields are the arguments of ``LayerUploader.push_image``."""

    name: str | None = None
    tags: Iterable[str] | None = None
    platforms: Iterable[str] | None = None
    preserve_digests: bool = False
    create_repository: bool = False
    max_workers: int = 4
    checkpoint_dir: str | os.PathLike[str] | None = None
    progress: Callable[[int], object] | None = None
    observer: PushObserver = field(default_factory=PushObserver)


def read_image(
    path: str,
    temporary_files: ExitStack,
    heartbeat: Callable[[], object],
    decompressed: Callable[[int, int], object] = lambda _position, _size: None,
) -> Contents:
    """What an image file has. Raises ``InvalidImageError``, and what opening it raises.

    ``decompressed`` is that of ``open_image_files``.
    """
    files = open_image_files(path, temporary_files, heartbeat, decompressed)
    if files.find("index.json") is not None:
        return read_layout(files)
    if files.find("manifest.json") is not None:
        document = read_json(files, "manifest.json", partial(image_error, path))
        if isinstance(document, list):
            return read_docker_archive(files, document)
        if isinstance(document, dict):
            return read_directory(files, document)
    raise unknown_format(files)


@dataclass(frozen=True)
class _Found:
    """The image that was chosen in a file, what refers to it, and what the file lacks."""

    contents: Contents
    attached: Mapping[str, frozenset[str]]
    """By digest: what a signature or another artifact refers to."""
    chosen: Chosen
    absent: list[Descriptor]
    """What the file lacks of the chosen image, and of what is attached."""


class ImagePush:
    """One call of ``push_image``."""

    def __init__(
        self,
        repository: Repository,
        planner: Planner,
        image: str | os.PathLike[str],
        options: PushOptions,
    ) -> None:
        for name in ("preserve_digests", "create_repository"):
            value = getattr(options, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, not {short_repr(value)}")
        creates = options.create_repository
        check_image_client(repository.target.client, creates_repository=creates)
        checkpoint_dir = options.checkpoint_dir
        if not is_path(image):
            raise TypeError(f"image must be a path, not {short_repr(image)}")
        if not check_path("image", image):
            raise ValueError("image must be a path, not ''")  # not the working directory
        if checkpoint_dir is not None and not is_path(checkpoint_dir):
            raise TypeError(f"checkpoint_dir must be a path, not {short_repr(checkpoint_dir)}")
        if checkpoint_dir is not None:
            check_path("checkpoint_dir", checkpoint_dir)
        if options.name is not None:
            check_name("name", options.name)
        check_int("max_workers", options.max_workers)
        check_callback("progress", options.progress)
        self._path = os.path.abspath(image)  # the working directory may change
        self._wanted = Wanted(
            repository.target.repository_name,
            options.name,
            check_names("tags", options.tags, TAG),
            check_names("platforms", options.platforms, PLATFORM),
        )
        if self._wanted.platforms == ():
            raise ValueError("platforms must not be empty: pass None for all of them")
        self._preserve_digests = options.preserve_digests
        self._create_repository = options.create_repository
        self._checkpoint_dir: Path | BestEffortPath | None = None
        if isinstance(checkpoint_dir, BestEffortPath):
            self._checkpoint_dir = checkpoint_dir
        elif checkpoint_dir is not None:
            self._checkpoint_dir = Path(checkpoint_dir).absolute()
        self._batch_options = BatchOptions(
            options.max_workers, progress=options.progress, finished=_close_temporary_file
        )
        self._progress = options.progress
        self._observer = options.observer
        self._waiter = Waiter(lambda: self._notify(0))
        self._planner = planner
        self._batch_repository = repository
        self._repository = repository.with_waiter(self._waiter)
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
        self._observer.begin("reading the image")
        found = self._waiter.run("disk", partial(self._read, temporary_files))
        self._observer.begin("asking ECR what it has")
        if self._create_repository:
            self._repository.create_if_missing()
        chosen, present = found.chosen, self._ask_for(found.absent)
        plan = self._waiter.run("disk", partial(self._make_plan, found, present))
        if self._checkpoint_dir is not None:
            self._waiter.run("disk", partial(_make_directory, self._checkpoint_dir))
        sizes_at_ecr = self._ask_for_blobs(plan)
        self._check_tags(plan, chosen.tags)
        if chosen.notice:
            self._observer.notice(chosen.notice)
        for name in chosen.dropped:
            self._observer.notice(
                f"{short_repr(name)} is not a tag, so the image gets none from it"
            )
        self._observer.plan(plan.size_to_send, plan.size_to_read)
        self._observer.begin("")
        self._observer.start(chosen.tags, plan.summary(sizes_at_ecr))
        done, sent = self._send_blobs(plan, temporary_files, sizes_at_ecr)
        for notice in done.notices:
            self._observer.notice(notice)
        self._observer.begin("putting the manifest")
        failed = outcome_of(partial(self._put_manifests, done, chosen.tags))
        if failed is not None and failed.code == "LayersNotFoundException":
            # ECR may delete layers that no image refers to, so upload them again.
            self._notify(-sum(layer.size for layer in sent))
            self._observer.begin("")
            done, sent = self._send_blobs(plan, temporary_files, {})
            self._observer.begin("putting the manifest")
            failed = outcome_of(partial(self._put_manifests, done, chosen.tags))
        if failed is not None:
            raise failed.error
        root = done.manifests[-1]
        existing = tuple(
            UploadedLayer(digest, size, existed=True) for digest, size in present.items() if size
        )
        return PushedImage(
            root.digest,
            root.media_type,
            chosen.tags,
            (*sent, *existing),
            size=len(root.content),
        )

    # Reading

    def _read(self, temporary_files: ExitStack) -> _Found:
        decompressed = self._observer.decompressed
        contents = read_image(self._path, temporary_files, check_current_task, decompressed)
        attached = find_attached(contents)
        chosen = choose(contents, attached, self._wanted)
        if contents.index is not None and chosen.root.digest == contents.index.digest:
            index = contents.index
            contents = replace(contents, manifests={**contents.manifests, index.digest: index})
        leaves = leaves_of(contents, chosen.root)
        absent = [
            blob
            for leaf in choose_leaves(contents, leaves, self._wanted.platforms)
            for blob in leaf.absent
        ]
        for one in contents.listed:
            if one.digest in attached:
                absent += absent_of(contents, one)
        return _Found(contents, attached, chosen, absent)

    def _ask_for(self, absent: list[Descriptor]) -> dict[str, int]:
        """What the repository has of what the file lacks: sizes by digest, 0 for manifests.

        An image can be pushed without blobs that were never pulled, if they are there already.
        """
        manifests = [one.digest for one in absent if one.media_type in MANIFEST_TYPES]
        blobs = {one.digest: one.size for one in absent if one.media_type not in MANIFEST_TYPES}
        present: dict[str, int] = {}
        if blobs:
            present |= answer_of(partial(self._repository.existing_sizes, blobs))
        if manifests and self._repository.has_images(manifests):
            present |= dict.fromkeys(manifests, 0)
        return present

    def _ask_for_blobs(self, plan: Plan) -> dict[str, int | None]:
        """The sizes at ECR of what is sent as it is; ``None`` for what ECR lacks.

        Also finds out whether there is such a repository, before minutes are spent on compressing.
        """
        for blob in plan.blobs.values():
            self._planner.check_layer(blob.size)  # or a batch would refuse it after this call
        wanted = {digest: blob.size for digest, blob in plan.blobs.items()}
        sizes = answer_of(partial(self._repository.existing_sizes, wanted))
        return {digest: sizes.get(digest) for digest in wanted}

    def _make_plan(self, found: _Found, present: Mapping[str, int]) -> Plan:
        chosen = found.chosen
        return make_plan(
            found.contents,
            select(found.contents, chosen.root, self._wanted.platforms, present),
            found.attached,
            chosen.tags,
            present,
            preserve_digests=self._preserve_digests,
        )

    def _notify(self, newly_confirmed: int) -> None:
        if self._progress is not None:
            self._progress(newly_confirmed)

    # Blobs

    def _send_blobs(
        self, plan: Plan, temporary_files: ExitStack, sizes_at_ecr: Mapping[str, int | None]
    ) -> tuple[Plan, tuple[UploadedLayer, ...]]:
        """Upload the blobs that ECR lacks. The plan, with what the plain layers have become.

        ``sizes_at_ecr`` is that of ``BatchOptions``.

        They are compressed one after the other, largest first, while others are sent. No more of
        them are kept than there are workers, and the one that is being compressed.
        """
        options = replace(self._batch_options, sizes_at_ecr=sizes_at_ecr)
        batch = BatchUpload(self._batch_repository, self._planner, options)
        blobs = [self._with_checkpoint(blob) for blob in plan.blobs.values()]
        if not plan.plain:
            return plan.with_layers({}), tuple(batch.run(blobs))
        plain = sorted(plan.plain.values(), key=lambda layer: layer.region.size, reverse=True)
        most = sum(layer.region.size for layer in plain[: self._batch_options.max_workers + 1])
        check_free_space(most, "compressing the image's layers")
        prepared: dict[str, tuple[CompressedLayer, Layer]] = {}

        def add_all(add: AddLayer) -> None:
            for blob in blobs:
                add(blob)
            with Waiter(batch.heartbeat, batch.is_stopped) as waiter:
                for layer in plain:
                    prepare = partial(self._prepare, layer, temporary_files)
                    prepared[layer.diff_id] = waiter.run("compress", prepare)
                    add(self._with_checkpoint(prepared[layer.diff_id][1]))

        sent = tuple(batch.run_each(add_all))
        return plan.with_layers(prepared), sent

    def _prepare(
        self, layer: PlainLayer, temporary_files: ExitStack
    ) -> tuple[CompressedLayer, Layer]:
        """Compress a layer, in a thread of its own."""

        def heartbeat(newly_read: int) -> None:
            check_current_task()
            self._observer.read(newly_read)

        compressed, blob = prepare_layer(layer, self._path, temporary_files, heartbeat)
        self._observer.plan(compressed.size - layer.region.size, 0)
        return compressed, blob

    def _with_checkpoint(self, blob: Layer) -> Layer:
        if self._checkpoint_dir is None:
            return blob
        name = checkpoint_name(str(blob.digest), self._repository.target.identity)
        return replace(blob, checkpoint=self._checkpoint_dir / name)

    # Manifests

    def _check_tags(self, plan: Plan, tags: tuple[str, ...]) -> None:
        """Raise ``InvalidImageError`` if an immutable tag is that of another image.

        What a plain image becomes is not known yet: then PutImage decides.
        """
        if not plan.plain:
            digest = plan.manifests[-1].digest
            check_immutable_tags(self._repository, digest, tags, plan.contents.error)

    def _put_manifests(self, plan: Plan, tags: tuple[str, ...]) -> None:
        """Put all manifests: the image, what is attached to it, and last the image's tags."""
        *below, root = plan.manifests
        puts: list[tuple[Manifest, str | None]] = [(manifest, None) for manifest in below]
        if plan.attached:
            puts.append((root, None))
        for one in plan.attached:
            *others, artifact = one.manifests
            puts += [(manifest, None) for manifest in others] + [(artifact, one.tag)]
        if tags or not plan.attached:
            puts += [(root, tag) for tag in tags or (None,)]
        for manifest, tag in puts:
            self._repository.put_image(
                manifest.digest, manifest.media_type, manifest.content.decode(), tag
            )
            if manifest.digest not in self._put:
                self._put.append(manifest.digest)


def _close_temporary_file(layer: Layer) -> None:
    if isinstance(layer.source, UnnamedFile):
        layer.source.file.close()  # which frees its bytes on the disk


def _make_directory(path: Path | BestEffortPath) -> None:
    name = os.fspath(path)
    try:
        Path(name).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = (
            f"the checkpoint directory {name!r} cannot be created: {error}. Pass another directory"
        )
        raise_or_report(path, CheckpointError(message), error)

"""The steps of an upload, for programs that read the layer themselves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ecr_parts._base.validation import check_digest, check_int, short_repr
from ecr_parts._model.layers import Blob, UploadedLayer
from ecr_parts._model.machine import Machine, NextAction
from ecr_parts._model.session import UploadSession, check_session
from ecr_parts._sources.chunks import contiguous_view, slices
from ecr_parts._upload.plan import Planner
from ecr_parts._upload.steps import Steps, raise_error, start_upload
from ecr_parts._wire.call import Target, answer_of
from ecr_parts._wire.repository import Repository


def initiate(
    repository: Repository, planner: Planner, layer_size: int | None, layer_digest: str | None
) -> UploadSession:
    """``LayerUploader.initiate``."""
    if layer_size is not None:
        check_int("layer_size", layer_size, minimum=0)
    planner.check_layer(layer_size)
    if layer_digest is not None:
        check_digest("layer_digest", layer_digest)
    start = partial(start_upload, repository, planner)
    session = answer_of(partial(start, layer_size, layer_digest))
    Machine(session, planner.limits.min_part).start(session)
    return session


def upload_part(
    repository: Repository, planner: Planner, session: UploadSession, blob: Blob
) -> None:
    """``LayerUploader.upload_part``."""
    check_target(repository.target, session)
    part = planner.check_part(session, blob)
    steps, known = Steps(repository, Machine(session, planner.limits.min_part)), False
    call = repository.prepare_part(session.upload_id, part, slices(contiguous_view(blob)))
    try:
        action = steps.take(partial(steps.settle, call))
        known = not steps.in_doubt
    finally:
        if not known:
            steps.machine.mark_shared()  # ECR may still store the part
    # The part is never cut again: ``prepare_part`` says that it cannot be cut.
    if action in (NextAction.CHECK_LOST, NextAction.FAIL) and steps.error is not None:
        raise_error(steps.error, session)


def complete(
    repository: Repository, planner: Planner, session: UploadSession, digest: str
) -> UploadedLayer:
    """``LayerUploader.complete``."""
    check_target(repository.target, session)
    check_digest("digest", digest)
    if session.layer_digest not in (None, digest):
        raise ValueError(f"digest must be the session's, {session.layer_digest}, not {digest}")
    size = session.next_byte
    if session.layer_size not in (None, size):
        raise ValueError(
            f"ECR has {size:,} of the layer's {session.layer_size:,} bytes: send the rest with "
            "upload_part first"
        )
    Planner(planner.limits).check_layer(size)
    steps = Steps(repository, Machine(session, planner.limits.min_part))
    action = steps.take(partial(steps.complete, digest))
    if action in (NextAction.CHECK_LOST, NextAction.CHECK_COMPLETED):
        action = steps.take(partial(steps.check_availability, action, digest, size))
    if action is not NextAction.FINISH and steps.error is not None:
        raise_error(steps.error, session)  # the caller continues the upload, so never restarts
    return UploadedLayer(digest, size, steps.existed)


def check_target(target: Target, session: UploadSession) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``session`` is one for ``target``."""
    if not isinstance(session, UploadSession):
        raise TypeError(f"session must be an UploadSession, not {short_repr(session)}")
    check_session(session)  # its fields may have been changed
    if not target.has(session):
        other = replace(
            target, repository_name=session.repository_name, registry_id=session.registry_id
        )
        raise ValueError(f"session must be for {target}, not for {other}")

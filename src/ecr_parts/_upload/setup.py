"""The arguments of ``LayerUploader``, checked."""

# No ``from __future__ import annotations`` here; ``_model/layers.py`` has the reason.

import tenacity
from botocore.client import BaseClient
from typing_extensions import TypedDict

from ecr_parts._base.validation import check_name, check_positive, short_repr
from ecr_parts._model.limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
from ecr_parts._upload.plan import Planner
from ecr_parts._wire.api import EcrClient, check_client, check_endpoint, service_name
from ecr_parts._wire.bandwidth import Bandwidth
from ecr_parts._wire.call import CallOptions, Target
from ecr_parts._wire.clients import find_repository
from ecr_parts._wire.gate import Overlap
from ecr_parts._wire.repository import AliasCheck, Repository
from ecr_parts._wire.request import accept_encoded_blobs, make_calls_stoppable
from ecr_parts._wire.retry import default_retrying
from ecr_parts._wire.uplink import Uplink


class UploaderOptions(TypedDict, total=False):
    """The options of ``LayerUploader``, for type checkers."""

    part_size: int | None
    limits: Limits | None
    retrying: tenacity.Retrying | None
    overlap: bool
    max_bandwidth: float | None
    attempt_timeout: float


UploaderOptions.__module__ = "ecr_parts"


def set_up(
    client: EcrClient,
    repository_name: str,
    registry_id: str | None,
    *,
    part_size: int | None,
    limits: Limits | None,
    retrying: tenacity.Retrying | None,
    overlap: bool,
    max_bandwidth: float | None,
    attempt_timeout: float,
) -> tuple[Repository, Planner]:
    """Check the arguments of ``LayerUploader``, and prepare the client. Makes no call."""
    check_client(client)
    check_endpoint(client)
    if registry_id is not None:
        check_name("registry_id", registry_id)
    uri = find_repository(client, repository_name, registry_id)
    if retrying is not None and not isinstance(retrying, tenacity.Retrying):
        raise TypeError(f"retrying must be a tenacity.Retrying, not {short_repr(retrying)}")
    if limits is None:
        limits = ECR_PUBLIC_LIMITS if service_name(client) == "ecr-public" else ECR_LIMITS
    elif not isinstance(limits, Limits):
        raise TypeError(f"limits must be a Limits, not {short_repr(limits)}")
    planner = Planner(limits, part_size)
    planner.check_part_size()
    if not isinstance(overlap, bool):
        raise TypeError(f"overlap must be True or False, not {short_repr(overlap)}")
    bandwidth = None
    if max_bandwidth is not None:
        check_positive("max_bandwidth", max_bandwidth, "bytes per second")
        bandwidth = Bandwidth(max_bandwidth)
        bandwidth.check_workers(1)
        if not isinstance(client, BaseClient):
            raise TypeError(f"max_bandwidth requires a botocore client, not {short_repr(client)}")
    check_positive("attempt_timeout", attempt_timeout, "seconds")
    make_calls_stoppable(client)
    encodes = accept_encoded_blobs(client)
    options = CallOptions(
        retrying or default_retrying(),
        attempt_timeout,
        encodes=encodes,
        overlap=Overlap(enabled=overlap and encodes),
        bandwidth=bandwidth,
        uplink=Uplink(limits.min_part),
    )
    alias = None if uri.public_alias is None else AliasCheck(uri)
    target = Target(client, uri.name, uri.registry_id)
    return Repository(target, options, alias=alias), planner

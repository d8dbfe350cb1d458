"""Clients for a repository that is named by its URI: created here, or passed by the caller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoRegionError

from ecr_parts._base.redaction import show_text, show_url
from ecr_parts._base.validation import check_name, short_repr, to_printable
from ecr_parts._wire.api import EcrClient, endpoint_url, service_name
from ecr_parts._wire.registries import RepositoryUri, is_loopback, parse_repository
from ecr_parts._wire.retry import CLIENT_CONFIG

_LOCAL_REGION = "us-east-1"  # LocalECR accepts any
_PUBLIC_REGION = "us-east-1"  # where the API of ECR Public is


def create_client(
    session: botocore.session.Session,
    repository: RepositoryUri,
    *,
    public: bool = False,
    region: str | None = None,
    endpoint_url: str | None = None,
) -> BaseClient:
    """A client for ``repository``, with ``CLIENT_CONFIG``. Raises what botocore raises.

    The region is ``region`` or that of the repository, which do not differ if both are given;
    else that of ``AWS_REGION``, as in the AWS CLI and other SDKs, since botocore reads
    ``AWS_DEFAULT_REGION`` only; else the one that botocore finds.
    """
    public = public or repository.public_alias is not None
    region = repository.region or region or (_PUBLIC_REGION if public else None)
    region = region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    config = CLIENT_CONFIG
    if repository.endpoint_url is not None:
        region = region or _LOCAL_REGION
        config = config.merge(Config(proxies={}))  # those of the environment cannot reach it
    if repository.is_fips:
        config = config.merge(Config(use_fips_endpoint=True))
    if repository.is_dual_stack:
        config = config.merge(Config(use_dualstack_endpoint=True))
    client: BaseClient = session.create_client(
        "ecr-public" if public else "ecr",
        region_name=region,
        endpoint_url=endpoint_url or repository.endpoint_url,
        config=config,
    )
    return client


def client_for(
    repository: str,
    *,
    public: bool = False,
    region: str | None = None,
    profile: str | None = None,
    endpoint_url: str | None = None,
) -> BaseClient:
    """A client for the name or the URI of a repository. Makes no call.

    Raises ``TypeError`` and ``ValueError`` for bad arguments, and if botocore finds no region or
    cannot create a client.
    """
    if not isinstance(public, bool):
        raise TypeError(f"public must be True or False, not {short_repr(public)}")
    for name, value in (("region", region), ("profile", profile), ("endpoint_url", endpoint_url)):
        if value is not None:
            check_name(name, value)
    uri = read_repository("repository", repository, public=public)
    given = {"region": region, "endpoint_url": endpoint_url}
    conflict = find_conflict(uri, given, public=public)
    if conflict is not None:
        name, problem = conflict
        raise ValueError(f"{name} {problem}")
    try:
        session = botocore.session.Session(profile=profile)
        return create_client(session, uri, public=public, region=region, endpoint_url=endpoint_url)
    except NoRegionError:
        message = (
            "there is no AWS region: pass region or the repository's URI, or set AWS_REGION or the "
            "region of the profile"
        )
    except (BotoCoreError, ValueError) as error:  # not Exception: a signal handler may raise one
        message = (
            f"cannot create a client: {_describe(error)}. Check the AWS "
            "configuration, profile, region and endpoint_url"
        )
    raise ValueError(message)  # without the error, which may show a password


def find_conflict(
    repository: RepositoryUri, values: Mapping[str, str | None], *, public: bool
) -> tuple[str, str] | None:
    """The first argument that contradicts the URI of a repository, and how; ``None`` if none does.

    ``values`` are arguments by the name that ``RepositoryUri`` has for them.
    """
    if public and repository.registry_id is not None:
        return "public", f"contradicts the repository, {repository.text}: omit one of them"
    for name, value in values.items():
        found = getattr(repository, name)
        if value is None or found is None:
            continue
        shown = show_url(value) if name == "endpoint_url" else value
        if shown != found:
            return name, f"must be that of the repository, {found}, or omitted, not {shown}"
    return None


def _describe(error: Exception) -> str:
    text = show_text(str(error))
    if str(error).startswith("Invalid endpoint"):  # botocore shows it, and it may have a password
        text = "the endpoint URL is malformed"
    return f"{type(error).__name__}: {to_printable(text).rstrip('.')}"


def read_repository(argument: str, text: object, *, public: bool) -> RepositoryUri:
    """Read the repository that an argument names. Raises an error if it has a tag or a digest."""
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a str, not {short_repr(text)}")
    try:
        uri = parse_repository(text, public=public)
    except ValueError as error:
        raise ValueError(f"{argument} {error}") from None
    if uri.tag is not None or uri.digest is not None:
        raise ValueError(
            f"{argument} must not have a tag or a digest, as in {short_repr(text)}: pass tags to "
            "push_image and put_manifest"
        )
    return uri


def find_repository(
    client: EcrClient, repository_name: str, registry_id: str | None
) -> RepositoryUri:
    """The repository that ``repository_name``, a name or a URI, identifies for ``client``.

    Raises ``ValueError`` for a URI that does not agree with ``registry_id`` or the client. A client
    that is not botocore's is not checked, because nothing is known about it.
    """
    service = service_name(client)
    uri = read_repository("repository_name", repository_name, public=service == "ecr-public")
    if registry_id is not None and uri.registry_id not in (None, registry_id):
        raise ValueError(
            f"registry_id must be that of {uri.text} or omitted, not {short_repr(registry_id)}"
        )
    if service is None:
        return replace(uri, registry_id=registry_id or uri.registry_id)
    wanted = "ecr-public" if uri.public_alias is not None else "ecr"
    if uri.registry_id or uri.public_alias:
        _check("a client for", wanted, service, uri)
    region = getattr(getattr(client, "meta", None), "region_name", None)
    if uri.region is not None:
        _check("a client for the region", uri.region, region, uri)
    if uri.endpoint_url is not None and not _is_same_server(uri.endpoint_url, endpoint_url(client)):
        _check("a client for", uri.endpoint_url, show_url(endpoint_url(client)), uri)
    return replace(uri, registry_id=registry_id or uri.registry_id)


def _check(what: str, wanted: str, found: object, uri: RepositoryUri) -> None:
    if found != wanted:
        raise ValueError(
            f"repository_name {uri.text} requires {what} {wanted}, and this one is for {found}: "
            "pass the name alone, or create the client with LayerUploader.for_repository"
        )


def _is_same_server(url: str, other: str) -> bool:
    """Whether both URLs, which are valid, are of one port of this machine."""
    parts, others = urlsplit(url), urlsplit(other)
    return is_loopback(others.hostname or "") and parts.port == others.port

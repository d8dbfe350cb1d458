"""The names of repositories, and what their URIs say about account, region and endpoint.

References: "Amazon ECR private registries" and "Making requests to Amazon ECR registries" in the
user guide, the user guide of ECR Public, and botocore's ``partitions.json`` for the hosts' names.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from ecr_parts._base.validation import is_digest, short_repr
from ecr_parts._model.limits import REPOSITORY_NAME

PUBLIC_HOSTS = ("public.ecr.aws", "ecr-public.aws.com")
"""The hosts of ECR Public. The second one is for dual-stack networks."""
_MAX_NAME, _MAX_PUBLIC_NAME = 256, 205  # characters; ``RepositoryName`` in both API references
_PRIVATE_HOST = re.compile(
    r"(?P<account>[0-9]{12})\.dkr(?P<separator>[.-])ecr(?P<fips>-fips)?"
    r"\.(?P<region>[a-z0-9]+(?:-[a-z0-9]+)+)\.(?P<suffix>[a-z0-9.-]+)"
)
_LIKE_PRIVATE_HOST = re.compile(r"[0-9]+\.dkr[.-]ecr.*", re.IGNORECASE)
_ALIAS = re.compile(r"(?=.{2,50}$)[a-z][a-z0-9]+(?:[._-][a-z0-9]+)*")  # RegistryAlias
_DOCKER_HUB = frozenset(
    {"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
)
_FORMS = "pass NAME, ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME or public.ecr.aws/ALIAS/NAME"
_PARTITIONS = (
    ("cn-", "amazonaws.com.cn", "on.amazonwebservices.com.cn"),
    ("eusc-", "amazonaws.eu", "on.amazonwebservices.eu"),
    ("us-iso-", "c2s.ic.gov", "on.aws.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov", "on.aws.scloud"),
    ("eu-isoe-", "cloud.adc-e.uk", "on.cloud-aws.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov", "on.aws.hci.ic.gov"),
    ("", "amazonaws.com", "on.aws"),
)
"""How the names of a partition's regions start, and the suffixes of its hosts: IPv4, dual-stack."""


@dataclass(frozen=True)
class RepositoryUri:
    """A repository, as a user has named it. What a plain name does not say is ``None``."""

    text: str
    """As it was passed, without tag and digest."""
    name: str
    """As ECR's API knows it."""
    tag: str | None = None
    """Not checked; it may be empty."""
    digest: str | None = None
    registry_id: str | None = None
    """The AWS account ID."""
    region: str | None = None
    public_alias: str | None = None
    """The alias of the registry, if it is one of ECR Public."""
    endpoint_url: str | None = None
    """That of a LocalECR."""
    is_fips: bool = False
    is_dual_stack: bool = False


@dataclass(frozen=True)
class _Registry:
    """What the host of a URI says."""

    path: str
    """The rest of the URI."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of ``RepositoryUri``."""


def parse_repository(text: str, *, public: bool = False) -> RepositoryUri:
    """Read the name or the URI of a repository, with or without ``https://``, tag and digest.

    ``public`` tells that a plain name is one of ECR Public. Raises ``ValueError`` for anything
    else. Its message continues a sentence that begins with the argument's name, and never shows a
    password.
    """
    registry = _parse_registry(text)
    if registry.fields and not registry.path:
        raise ValueError(f"must have a name after the host, as in {text.rstrip('/')}/NAME")
    path, at, digest = registry.path.partition("@")
    if at and not is_digest(digest):
        raise ValueError(
            "must have sha256: and 64 lower-case hex digits after the @, not " + short_repr(digest)
        )
    directory, slash, last = path.rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{directory}{slash}{last}"
    is_public = public or "public_alias" in registry.fields
    problem = _problem_of_name(name, _MAX_PUBLIC_NAME if is_public else _MAX_NAME)
    if problem is not None:
        raise ValueError(problem)
    return RepositoryUri(
        text[: len(text) - len(registry.path) + len(name)],
        name,
        tag=tag if colon else None,
        digest=digest if at else None,
        **registry.fields,
    )


def _parse_registry(text: str) -> _Registry:
    scheme, has_scheme, rest = text.partition("://") if "://" in text else ("https", "", text)
    host, slash, path = rest.partition("/")
    is_private, is_public = _LIKE_PRIVATE_HOST.fullmatch(host), host in PUBLIC_HOSTS
    if not (slash or has_scheme or is_private or is_public):
        return _Registry(rest)
    if "@" in host:  # not shown, because it may have a password
        raise ValueError("must not have a user name or a password: " + _FORMS)
    if scheme in ("http", "https") and _is_loopback_with_port(host):
        endpoint_url = f"{scheme if has_scheme else 'http'}://{host}"
        return _Registry(path, {"endpoint_url": endpoint_url})
    if scheme == "https":
        if is_private:
            return _Registry(path, _parse_private_host(host))
        if is_public:
            alias, slash, path = path.partition("/")
            if not slash or not _ALIAS.fullmatch(alias):
                raise ValueError(f"must be like {host}/ALIAS/NAME, not {short_repr(text)}")
            return _Registry(
                path, {"public_alias": alias, "is_dual_stack": host != PUBLIC_HOSTS[0]}
            )
    if has_scheme or ":" in host or host.lower() in _DOCKER_HUB:
        raise ValueError(f"must be a repository of ECR, not {short_repr(text)}: {_FORMS}")
    return _Registry(rest)  # such as ghcr.io/team/app, the name of a pull through cache


def _parse_private_host(host: str) -> dict[str, Any]:
    match = _PRIVATE_HOST.fullmatch(host)
    if match is None:
        raise ValueError(
            "must be like 012345678910.dkr.ecr.us-east-1.amazonaws.com/NAME, with an account ID of "
            f"12 digits, in lower case and without a port, not on the host {short_repr(host)}"
        )
    region, is_dual_stack = match["region"], match["separator"] == "-"
    suffix = next(
        dual_stack if is_dual_stack else ipv4
        for start, ipv4, dual_stack in _PARTITIONS
        if region.startswith(start)
    )
    if match["suffix"] != suffix:
        expected = f"{host[: match.start('suffix')]}{suffix}"
        raise ValueError(f"must be on the registry's host, {expected}, not on {short_repr(host)}")
    return {
        "registry_id": match["account"],
        "region": region,
        "is_fips": match["fips"] is not None,
        "is_dual_stack": is_dual_stack,
    }


def _is_loopback_with_port(host: str) -> bool:
    match = re.fullmatch(r"(localhost|[0-9.]+|\[[0-9a-f:]+\]):([0-9]{1,5})", host)
    return match is not None and is_loopback(match[1]) and 0 < int(match[2]) < 65_536


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a name or an address of this machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _problem_of_name(name: str, max_length: int) -> str | None:
    """Why ``name`` cannot be that of a repository; ``None`` if it can."""
    if not 2 <= len(name) <= max_length:
        return f"must have 2 to {max_length} characters, not {len(name):,}"
    if REPOSITORY_NAME.fullmatch(name):
        return None
    invalid = re.search(r"[^A-Za-z0-9._/-]", name)
    if invalid is not None:
        return f"must not contain {short_repr(invalid[0])}, as in {short_repr(name)}"
    if name != name.lower():
        return f"must be lower case, as ECR requires, not {short_repr(name)}"
    return f"must have '.', '_', '-' and '/' only between letters or digits, not {short_repr(name)}"

"""The names and URIs of repositories: what they say, and which client is created for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import botocore.session
import pytest
from ecr_calls import PushingClient
from helpers import NO_WAIT, SMALL_LIMITS, digest_of, operations, random_bytes
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from ecr_parts import ECR_PUBLIC_LIMITS, LayerUploader
from ecr_parts._model.limits import REPOSITORY_NAME
from ecr_parts._wire.registries import RepositoryUri, parse_repository
from ecr_parts.testing import LocalECR

ACCOUNT = "012345678910"
PRIVATE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/demo"
DIGEST = digest_of(b"")
BLOB = random_bytes(45)
PARTITIONS = (
    botocore.session.get_session()
    .get_component("data_loader")
    .load_data("partitions")["partitions"]
)
HOSTS = [
    (partition["id"], region, partition["outputs"])
    for partition in PARTITIONS
    for region in partition["regions"]
    if not region.endswith("-global")
]

accounts = st.from_regex(r"[0-9]{12}", fullmatch=True)
# Generated in a tenth of the time that ``from_regex(REPOSITORY_NAME)`` takes.
words = st.tuples(
    st.sampled_from(["/", ".", "_", "__", "-", "---"]), st.text("abyz089", min_size=1, max_size=9)
)
names = (
    st.lists(words, min_size=1, max_size=20)
    .map(lambda pairs: "".join(part for pair in pairs for part in pair).lstrip("/._-"))
    .filter(lambda name: len(name) >= 2)
)
schemes = st.sampled_from(["", "https://"])
tags = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
digests = st.none() | st.just(DIGEST)
aliases = st.from_regex(r"[a-z][a-z0-9]{1,8}(?:[._-][a-z0-9]{1,8})*", fullmatch=True).filter(
    lambda alias: len(alias) <= 50
)


@st.composite
def private_hosts(draw: st.DrawFn) -> tuple[str, RepositoryUri]:
    """The host of a private registry as AWS has it, and what it says."""
    account = draw(accounts)
    _, region, outputs = draw(st.sampled_from(HOSTS))
    # Older versions of botocore know no suffix for dual-stack hosts of some partitions.
    has_dual_stack = outputs["dualStackDnsSuffix"].startswith("api.")
    fips, dual_stack = draw(st.booleans()), has_dual_stack and draw(st.booleans())
    service = f"{'dkr-ecr' if dual_stack else 'dkr.ecr'}{'-fips' if fips else ''}"
    suffix = outputs["dualStackDnsSuffix" if dual_stack else "dnsSuffix"]
    if dual_stack:
        suffix = f"on.{suffix.removeprefix('api.')}"
    expected = RepositoryUri(
        "", "", registry_id=account, region=region, is_fips=fips, is_dual_stack=dual_stack
    )
    return f"{account}.{service}.{region}.{suffix}", expected


@st.composite
def public_hosts(draw: st.DrawFn) -> tuple[str, RepositoryUri]:
    alias, dual_stack = draw(aliases), draw(st.booleans())
    host = "ecr-public.aws.com" if dual_stack else "public.ecr.aws"
    expected = RepositoryUri("", "", public_alias=alias, is_dual_stack=dual_stack)
    return f"{host}/{alias}", expected


@st.composite
def loopback_hosts(draw: st.DrawFn) -> tuple[str, RepositoryUri]:
    address = draw(st.sampled_from(["127.0.0.1", "localhost", "[::1]", "127.9.8.7"]))
    host = f"{address}:{draw(st.integers(1, 65_535))}"
    return host, RepositoryUri("", "", endpoint_url=f"http://{host}")


# What a name or a URI says


@given(st.one_of(private_hosts(), public_hosts()), schemes, names, tags, digests)
def test_reads_the_uri_of_every_registry(
    host: tuple[str, RepositoryUri], scheme: str, name: str, tag: str | None, digest: str | None
) -> None:
    _check(f"{scheme}{host[0]}", host[1], name, tag, digest)


@given(loopback_hosts(), names, tags, digests)
def test_reads_the_uri_of_a_local_ecr(
    host: tuple[str, RepositoryUri], name: str, tag: str | None, digest: str | None
) -> None:
    _check(host[0], host[1], name, tag, digest)
    _check(f"http://{host[0]}", host[1], name, tag, digest)


def _check(
    host: str, expected: RepositoryUri, name: str, tag: str | None, digest: str | None
) -> None:
    text = f"{host}/{name}"
    suffix = f"{'' if tag is None else f':{tag}'}{'' if digest is None else f'@{digest}'}"
    uri = parse_repository(f"{text}{suffix}")
    assert vars(uri) == {
        **vars(expected), "text": text, "name": name, "tag": tag, "digest": digest
    }  # fmt: skip


@given(names, tags, st.booleans())
def test_every_valid_name_is_one(name: str, tag: str | None, public: bool) -> None:
    assert REPOSITORY_NAME.fullmatch(name)
    text = name if tag is None else f"{name}:{tag}"
    assert parse_repository(text, public=public) == RepositoryUri(name, name, tag=tag)


@given(st.text() | st.text("abAB0/:@.-_[]%?#\\ é\u0660", max_size=40))
def test_anything_else_is_refused_with_a_printable_message(text: str) -> None:
    try:
        uri = parse_repository(text)
    except ValueError as error:
        message = str(error)
    else:
        assert REPOSITORY_NAME.fullmatch(uri.name)
        assert text.startswith(uri.text)
        assert uri.text.endswith(uri.name)
        return
    assert message.startswith("must ")
    assert message.isprintable()


@given(st.sampled_from([host for host in HOSTS if host[0] != "aws-us-gov"]))
def test_host_of_another_partition_is_refused(host: tuple[str, str, dict[str, str]]) -> None:
    _, region, outputs = host
    suffixes = {partition["outputs"]["dnsSuffix"] for partition in PARTITIONS}
    for suffix in [*(suffixes - {outputs["dnsSuffix"]}), "example.com", "on.aws"]:
        with pytest.raises(ValueError, match=f"the registry's host, {ACCOUNT}.dkr.ecr.{region}."):
            parse_repository(f"{ACCOUNT}.dkr.ecr.{region}.{suffix}/app")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("docker.io/library/app", "must be a repository of ECR, not 'docker.io/library/app': pass"),
        ("Docker.io/app", "must be a repository of ECR, not 'Docker.io/app': pass NAME, "),
        ("registry.hub.docker.com/app", "hub.docker.com/app': pass NAME, ACCOUNT.dkr.ecr.REGION"),
        ("10.0.0.1:5000/app", "must be a repository of ECR, not "),
        ("127.0.0.1:0/app", "must be a repository of ECR, not "),
        ("127.0.0.1:65536/app", "must be a repository of ECR, not "),
        ("127.0.0.999:5000/app", "must be a repository of ECR, not "),
        ("[::2]:5000/app", "must be a repository of ECR, not "),
        ("app:v1/x", "must be a repository of ECR, not "),
        ("https://team/app", "must be a repository of ECR, not "),
        ("https://localhost/app", "must be a repository of ECR, not "),
        ("://team/app", "must be a repository of ECR, not "),
        ("docker://127.0.0.1:5000/app", "must be a repository of ECR, not "),
        (f"http://{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/app", "must be a repository of ECR, "),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com:443/app", "without a port, not on the host"),
        (f"{ACCOUNT}.DKR.ecr.us-east-1.amazonaws.com/app", "in lower case and without a port"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com./app", "must be on the registry's host"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com.evil.com/app", "must be on the registry's"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1/app", "must be like 012345678910.dkr.ecr.us-east-1.amazon"),
        ("12345.dkr.ecr.us-east-1.amazonaws.com/app", "with an account ID of 12 digits"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com", "must have a name after the host, as in "),
        (f"https://{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/", "as in https://012345678910.dkr.ecr"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com:v1", "without a port, not on the host"),
        ("127.0.0.1:5000/", "must have a name after the host, as in 127.0.0.1:5000/NAME"),
        ("public.ecr.aws", "must be like public.ecr.aws/ALIAS/NAME, not 'public.ecr.aws'"),
        ("public.ecr.aws/ab/", "must have a name after the host, as in public.ecr.aws/ab/"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/app/", "only between letters or digits"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com//app", "only between letters or digits"),
        (f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/App", "must be lower case, as ECR requires"),
        ("public.ecr.aws/app", "must be like public.ecr.aws/ALIAS/NAME, not 'public.ecr.aws/app'"),
        ("public.ecr.aws/A/app", "must be like public.ecr.aws/ALIAS/NAME"),
        ("public.ecr.aws/ab/" + "a" * 206, "must have 2 to 205 characters"),
        ("team/app?x=1", "must not contain '?', as in"),
        ("tëam/app", "must not contain 'ë'"),
        ("app\n", "must not contain"),
        ("app@v1", "must have sha256: and 64 lower-case hex digits after the @, not 'v1'"),
        ("app@", "must have sha256: and 64 lower-case hex digits after the @, not ''"),
        (f"app@{DIGEST}\n", "must have sha256: and 64 lower-case hex digits"),
    ],
)  # fmt: skip
def test_error_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as raised:
        parse_repository(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "text", ["https://me:secret@a.b/app", "https://me:secret@a.b", "me:secret@127.0.0.1:5000/a"]
)
def test_error_shows_no_password(text: str) -> None:
    with pytest.raises(ValueError, match="must not have a user name") as raised:
        parse_repository(text)
    assert "secret" not in str(raised.value)


# The constructor


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("{account}.dkr.ecr.us-east-1.amazonaws.com/demo", "demo"),
        ("https://{account}.dkr-ecr-fips.us-east-1.on.aws/demo", "demo"),
        ("{host}/demo", "demo"),
        ("http://{host}/demo", "demo"),
        ("localhost:{port}/demo", "demo"),
        ("ghcr.io/team/app", "ghcr.io/team/app"),
    ],
)
def test_uploader_takes_uri_that_agrees_with_client(uri: str, name: str, ecr: LocalECR) -> None:
    host = ecr.endpoint_url.partition("://")[2]
    text = uri.format(account=ACCOUNT, host=host, port=host.partition(":")[2])
    uploader = LayerUploader(ecr.client(), text, limits=SMALL_LIMITS)
    registry = {"registryId": ACCOUNT} if ACCOUNT in text else {}
    assert uploader.repository_name == name
    assert uploader.location == {"repositoryName": name, **registry}
    if name == "demo":
        digest = uploader.upload(BLOB).digest
        assert ecr.layer("demo", digest) == BLOB
        assert uploader.client.list_images(**uploader.location)["imageIds"] == []


@pytest.mark.parametrize(
    ("service", "uri", "message"),
    [
        (
            "ecr", f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/demo",
            "requires a client for the region eu-west-1, and this one is for us-east-1",
        ),
        (
            "ecr-public", f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/demo",
            "requires a client for ecr, and this one is for ecr-public",
        ),
        (
            "ecr", "public.ecr.aws/ab/demo",
            "requires a client for ecr-public, and this one is for ecr",
        ),
        ("ecr", "127.0.0.1:1/demo", "a client for http://127.0.0.1:1, and this one is for http:"),
        ("ecr", "demo:v1", "repository_name must not have a tag or a digest, as in 'demo:v1'"),
        ("ecr", f"demo@{DIGEST}", "repository_name must not have a tag or a digest"),
        ("ecr-public", "a" * 206, "repository_name must have 2 to 205 characters"),
    ],
)  # fmt: skip
def test_uploader_refuses_uri_that_contradicts_client(
    service: str, uri: str, message: str, ecr: LocalECR
) -> None:
    with pytest.raises(ValueError, match=r"^repository_name ") as raised:
        LayerUploader(ecr.client(service), uri)
    assert message in str(raised.value)


def test_uploader_refuses_registry_id_that_contradicts_uri(ecr: LocalECR) -> None:
    with pytest.raises(ValueError, match=r"registry_id must be that of 0123.* or omitted, not '1'"):
        LayerUploader(ecr.client(), PRIVATE, registry_id="1")
    uploader = LayerUploader(ecr.client(), PRIVATE, registry_id=ACCOUNT)
    assert uploader.location["registryId"] == ACCOUNT


def test_client_that_is_not_botocores_is_believed(ecr: LocalECR) -> None:
    client = PushingClient(ecr.client())
    uri = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/demo"
    uploader = LayerUploader(client, uri, limits=SMALL_LIMITS)
    assert uploader.client is client
    assert uploader.upload(BLOB).size == 45


def test_location_is_a_copy(uploader: LayerUploader) -> None:
    uploader.location["repositoryName"] = "other"
    assert uploader.location == {"repositoryName": "demo"}


# for_repository


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the variables that an AWS client reads, and removes all others."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def environ(ecr: LocalECR | None = None, **variables: str) -> None:
        found = {} if ecr is None else ecr.environ()
        for name, value in found.items():
            if "REGION" not in name:
                monkeypatch.setenv(name, value)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return environ


Environ = Callable[..., None]


def test_creates_uploader_and_client_in_one_line(ecr: LocalECR, environ: Environ) -> None:
    environ(ecr, AWS_REGION="eu-west-1")
    uploader = LayerUploader.for_repository("demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
    assert ecr.calls == []
    assert ecr.layer("demo", uploader.upload(BLOB).digest) == BLOB
    assert uploader.client.meta.region_name == "eu-west-1"
    assert "ecr-parts/" in uploader.client.meta.config.user_agent_extra
    assert uploader.client.meta.config.retries["total_max_attempts"] == 1


@pytest.mark.parametrize(
    ("repository", "arguments", "variables", "region"),
    [
        ("demo", {"region": "eu-west-1"}, {"AWS_REGION": "us-west-2"}, "eu-west-1"),
        ("demo", {}, {"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "eu-west-3"}, "us-west-2"),
        ("demo", {}, {"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3"),
        (
            f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn/demo",
            {"region": "cn-north-1"},
            {"AWS_REGION": "us-west-2"},
            "cn-north-1",
        ),
        ("public.ecr.aws/ab/demo", {}, {"AWS_REGION": "eu-west-1"}, "us-east-1"),
        ("public.ecr.aws/ab/demo", {"region": "us-west-2"}, {}, "us-west-2"),
        ("demo", {"public": True}, {}, "us-east-1"),
        ("127.0.0.1:1/demo", {}, {}, "us-east-1"),
        ("127.0.0.1:1/demo", {}, {"AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3"),
    ],
)
def test_region_is_the_most_explicit_one(
    repository: str, arguments: dict[str, Any], variables: dict[str, str], region: str,
    environ: Environ,
) -> None:  # fmt: skip
    environ(**variables)
    assert LayerUploader.for_repository(repository, **arguments).client.meta.region_name == region


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [
        ("{}.dkr.ecr.us-east-1.amazonaws.com/demo", "https://api.ecr.us-east-1.amazonaws.com"),
        ("{}.dkr.ecr-fips.us-east-1.amazonaws.com/demo", "https://ecr-fips.us-east-1.amazonaws.com"),
        ("{}.dkr-ecr.us-east-1.on.aws/demo", "https://ecr.us-east-1.api.aws"),
        ("{}.dkr-ecr-fips.us-east-1.on.aws/demo", "https://ecr-fips.us-east-1.api.aws"),
        ("{}.dkr.ecr.eusc-de-east-1.amazonaws.eu/demo", "https://api.ecr.eusc-de-east-1.amazonaws"),
        ("ecr-public.aws.com/ab/demo", "https://ecr-public.us-east-1.api.aws"),
    ],
)  # fmt: skip
def test_client_calls_the_endpoint_of_the_host(uri: str, endpoint: str, environ: Environ) -> None:
    environ()
    client = LayerUploader.for_repository(uri.format(ACCOUNT)).client
    assert client.meta.endpoint_url.startswith(endpoint)


def test_local_ecr_is_found_by_the_uri_that_it_reports(ecr: LocalECR, environ: Environ) -> None:
    (repository,) = ecr.client().describe_repositories()["repositories"]
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    environ(**keys, HTTP_PROXY="http://127.0.0.1:1", http_proxy="http://127.0.0.1:1")
    uploader = LayerUploader.for_repository(repository["repositoryUri"], limits=SMALL_LIMITS)
    assert ecr.layer("demo", uploader.upload(BLOB).digest) == BLOB


def test_fips_host_works_with_an_endpoint_of_ones_own(ecr: LocalECR, environ: Environ) -> None:
    environ(ecr)
    uri = f"{ACCOUNT}.dkr-ecr-fips.us-east-1.on.aws/demo"
    for url in (None, ecr.endpoint_url):
        uploader = LayerUploader.for_repository(uri, endpoint_url=url, limits=SMALL_LIMITS)
        assert uploader.upload(BLOB).size == 45


def test_public_repository_has_the_limits_of_ecr_public(environ: Environ) -> None:
    environ()
    uploader = LayerUploader.for_repository("public.ecr.aws/ab/team/app", part_size=8 * 1024**2)
    assert uploader.location == {"repositoryName": "team/app"}
    assert uploader._planner.limits == ECR_PUBLIC_LIMITS


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"repository": 3}, TypeError, "repository must be a str, not 3"),
        ({"repository": "docker.io/app"}, ValueError, "repository must be a repository of ECR"),
        ({"repository": "demo:v1"}, ValueError, "repository must not have a tag or a digest"),
        ({"public": 1}, TypeError, "public must be True or False, not 1"),
        ({"region": 1}, TypeError, "region must be a str, not 1"),
        ({"region": "a b"}, ValueError, "cannot create a client: InvalidRegionError: "),
        ({"profile": ""}, ValueError, "profile must be 1 to 500 printable characters, not ''"),
        ({"profile": "none"}, ValueError, "cannot create a client: ProfileNotFound: The "),
        (
            {"endpoint_url": "http://u:secret@a b"}, ValueError,
            "cannot create a client: ValueError: the endpoint URL is malformed. Check the AWS",
        ),
        (
            {"repository": PRIVATE, "region": "eu-west-1"}, ValueError,
            "region must be that of the repository, us-east-1, or omitted, not eu-west-1",
        ),
        (
            {"repository": PRIVATE, "public": True}, ValueError,
            f"public contradicts the repository, {PRIVATE}: omit one of them",
        ),
        (
            {"repository": "127.0.0.1:1/demo", "endpoint_url": "http://u:secret@127.0.0.1:2"},
            ValueError, "endpoint_url must be that of the repository, http://127.0.0.1:1, or omit",
        ),
        ({"region": None}, ValueError, "there is no AWS region: pass region or the reposi"),
        ({"part_size": "8 MiB"}, TypeError, "part_size must be an int, not '8 MiB'"),
        ({"bandwidth": 1}, TypeError, "unexpected keyword argument 'bandwidth'"),
    ],
)  # fmt: skip
def test_for_repository_refuses_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str, environ: Environ
) -> None:
    environ()
    arguments = {"repository": "demo", "region": "us-east-1", **arguments}
    if arguments["repository"] != "demo" and arguments["region"] == "us-east-1":
        del arguments["region"]
    with pytest.raises(error) as raised:
        LayerUploader.for_repository(**arguments)
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_exception_of_a_signal_handler_passes_unchanged(
    environ: Environ, mocker: MockerFixture
) -> None:
    """Creating a client takes long enough for a time limit to end it."""
    environ()
    error = RuntimeError("out of time")
    mocker.patch("botocore.session.Session.create_client", side_effect=error)
    with pytest.raises(RuntimeError) as raised:
        LayerUploader.for_repository("demo", region="us-east-1")
    assert raised.value is error


def test_endpoint_of_the_repository_may_be_passed_too(ecr: LocalECR, environ: Environ) -> None:
    environ()
    host = ecr.endpoint_url.partition("://")[2]
    uploader = LayerUploader.for_repository(f"{host}/demo", endpoint_url=f"{ecr.endpoint_url}/")
    assert uploader.repository_name == "demo"


# The alias of a public registry

URI = "public.ecr.aws/ab/demo"


@pytest.fixture
def public(ecr: LocalECR) -> LayerUploader:
    client = ecr.client("ecr-public")
    return LayerUploader(client, URI, limits=SMALL_LIMITS, retrying=NO_WAIT)


def answer(uri: object) -> dict[str, object]:
    return {"repositories": [{"repositoryName": "demo", "repositoryUri": uri}]}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "ecr_parts"):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("uri", [URI, "ecr-public.aws.com/ab/demo", "127.0.0.1:1/demo", "?"])
def test_first_call_checks_the_alias_once(
    uri: str, ecr: LocalECR, public: LayerUploader, warnings: Callable[[], list[str]]
) -> None:
    ecr.respond("DescribeRepositories", answer(uri))
    public.upload(BLOB)
    public.missing([DIGEST])
    assert operations(ecr)[:2] == ["DescribeRepositories", "BatchCheckLayerAvailability"]
    assert len(ecr.calls_of("DescribeRepositories")) == 1
    assert warnings() == []


def test_repository_with_another_alias_gets_nothing(ecr: LocalECR, public: LayerUploader) -> None:
    ecr.respond("DescribeRepositories", answer("public.ecr.aws/cd/demo"), times=9)
    for call in (lambda: public.upload(BLOB), lambda: public.initiate()):
        with pytest.raises(
            ValueError, match=r"has the URI 'public.ecr.aws/cd/demo', not public.ecr"
        ):
            call()
    assert set(operations(ecr)) == {"DescribeRepositories"}


def test_alias_that_cannot_be_checked_is_a_notice(
    ecr: LocalECR, public: LayerUploader, warnings: Callable[[], list[str]]
) -> None:
    ecr.fail("DescribeRepositories", "access_denied")
    public.upload(BLOB)
    public.upload(b"another layer")
    assert len(ecr.calls_of("DescribeRepositories")) == 1
    (warning,) = warnings()
    assert warning.startswith(f"cannot check that {URI} is the repository's URI: DescribeReposit")


@pytest.mark.parametrize("malformed", [{}, {"repositories": []}, answer(3)])
def test_malformed_answer_about_the_alias_is_a_notice(
    malformed: dict[str, object], ecr: LocalECR, public: LayerUploader,
    warnings: Callable[[], list[str]],
) -> None:  # fmt: skip
    ecr.respond("DescribeRepositories", malformed, times=9)
    public.upload(BLOB)
    assert len(warnings()) == 1


def test_client_that_cannot_describe_repositories_is_a_notice(
    ecr: LocalECR, warnings: Callable[[], list[str]]
) -> None:
    client = PushingClient(ecr.client("ecr-public"))
    uploader = LayerUploader(client, URI, limits=SMALL_LIMITS, retrying=NO_WAIT)
    uploader.upload(BLOB)
    uploader.upload(b"another layer")
    (warning,) = warnings()
    assert warning.endswith("the client has no describe_repositories")


def test_alias_of_missing_repository_is_checked_once_it_exists(ecr: LocalECR) -> None:
    client = ecr.client("ecr-public")
    uploader = LayerUploader(client, "public.ecr.aws/ab/new", limits=SMALL_LIMITS, retrying=NO_WAIT)
    with pytest.raises(Exception, match="Create the repository"):
        uploader.upload(BLOB)
    client.create_repository(repositoryName="new")
    ecr.respond("DescribeRepositories", answer("public.ecr.aws/cd/new"))
    with pytest.raises(ValueError, match="check the credentials"):
        uploader.upload(BLOB)

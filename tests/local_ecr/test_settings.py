"""LocalECR keeps the settings of repositories, and answers what ECR answers about them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from ecr_calls import Caller
from helpers import SMALL_LIMITS, digest_of

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR
from ecr_parts.testing._service_model import check_parameters

POLICY = json.dumps({"Version": "2012-10-17", "Statement": []})
LIFECYCLE_POLICY = json.dumps(
    {
        "rules": [
            {
                "rulePriority": 1,
                "selection": {
                    "tagStatus": "untagged",
                    "countType": "imageCountMoreThan",
                    "countNumber": 30,
                },
                "action": {"type": "expire"},
            }
        ]
    }
)


@pytest.fixture
def ecr_call(ecr: LocalECR) -> Caller:
    return Caller(ecr.client())


@pytest.fixture
def public_call(ecr: LocalECR) -> Caller:
    return Caller(ecr.client("ecr-public"))


def described(call: Caller, name: str = "demo") -> dict[str, Any]:
    (repository,) = call("describe_repositories", repositoryNames=[name])["repositories"]
    return dict(repository)


# Mutability of tags


def knows_exclusions() -> bool:
    """Whether botocore knows ``imageTagMutabilityExclusionFilters``: older versions do not."""
    filters = [{"filterType": "WILDCARD", "filter": "v*"}]
    parameters = {"repositoryName": "demo", "imageTagMutabilityExclusionFilters": filters}
    return len(check_parameters("CreateRepository", parameters, public=False)) == 2


needs_exclusions = pytest.mark.skipif(not knows_exclusions(), reason="botocore does not know them")


def put_image(ecr: LocalECR, tag: str, number: int) -> str:
    """Put an image with a tag. The code of the error; empty if there is none."""
    call = Caller(ecr.client())
    LayerUploader(call.client, "demo", limits=SMALL_LIMITS).upload(b"{}")
    descriptor = {"digest": digest_of(b"{}"), "size": 2, "mediaType": "a/b"}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor,
        "layers": [descriptor],
        "annotations": {"number": str(number)},
    }
    answer = call("put_image", imageManifest=json.dumps(manifest), imageTag=tag)
    return str(answer.get("code", ""))


def test_changes_mutability_of_tags(ecr: LocalECR, ecr_call: Caller) -> None:
    assert put_image(ecr, "v1", 1) == ""
    assert put_image(ecr, "v1", 2) == ""
    answer = ecr_call("put_image_tag_mutability", imageTagMutability="IMMUTABLE")
    assert answer == {
        "registryId": "012345678910",
        "repositoryName": "demo",
        "imageTagMutability": "IMMUTABLE",
    }
    assert described(ecr_call)["imageTagMutability"] == "IMMUTABLE"
    assert put_image(ecr, "v1", 3) == "ImageTagAlreadyExistsException"
    assert put_image(ecr, "v2", 3) == ""
    ecr_call("put_image_tag_mutability", imageTagMutability="MUTABLE")
    assert put_image(ecr, "v1", 4) == ""


@needs_exclusions
@pytest.mark.parametrize(
    ("mutability", "overwritten"),
    [
        ("IMMUTABLE_WITH_EXCLUSION", ["latest", "dev-1", "a.b"]),
        ("MUTABLE_WITH_EXCLUSION", ["v1", "x-dev-1", "latest2", "aXb"]),
    ],
)
def test_filters_exclude_tags_from_mutability(
    mutability: str, overwritten: list[str], ecr: LocalECR, ecr_call: Caller
) -> None:
    filters = [{"filterType": "WILDCARD", "filter": text} for text in ("latest", "dev-*", "a.b")]
    mode = {"imageTagMutability": mutability, "imageTagMutabilityExclusionFilters": filters}
    answer = ecr_call("put_image_tag_mutability", **mode)
    assert {name: answer[name] for name in mode} == mode
    created = ecr_call("create_repository", repositoryName="other", **mode)["repository"]
    for repository in (created, described(ecr_call)):
        assert {name: repository[name] for name in mode} == mode
    tags = ["latest", "dev-1", "a.b", "v1", "x-dev-1", "latest2", "aXb"]
    for tag in tags:
        assert put_image(ecr, tag, 1) == ""
    assert [tag for tag in tags if not put_image(ecr, tag, 2)] == overwritten


@needs_exclusions
@pytest.mark.parametrize(
    ("mutability", "filters", "problem"),
    [
        ("IMMUTABLE", ["v*"], "must not be used with IMMUTABLE"),
        ("MUTABLE_WITH_EXCLUSION", None, "is required with MUTABLE_WITH_EXCLUSION"),
        ("IMMUTABLE_WITH_EXCLUSION", ["a*b*c*"], "2 wildcards"),
    ],
)
def test_rejects_filters_that_do_not_match_the_mutability(
    mutability: str, filters: list[str] | None, problem: str, ecr_call: Caller
) -> None:
    parameters: dict[str, Any] = {"imageTagMutability": mutability}
    if filters:
        parameters["imageTagMutabilityExclusionFilters"] = [
            {"filterType": "WILDCARD", "filter": text} for text in filters
        ]
    for method, name in (("put_image_tag_mutability", "demo"), ("create_repository", "new")):
        error = ecr_call(method, repositoryName=name, **parameters)
        assert error["code"] == "InvalidParameterException"
        assert problem in error["message"]
    names = [one["repositoryName"] for one in ecr_call("describe_repositories")["repositories"]]
    assert names == ["demo"]


# Scanning and encryption


def test_changes_scanning(ecr_call: Caller) -> None:
    assert described(ecr_call)["imageScanningConfiguration"] == {"scanOnPush": False}
    scanning = {"scanOnPush": True}
    answer = ecr_call("put_image_scanning_configuration", imageScanningConfiguration=scanning)
    assert answer["imageScanningConfiguration"] == scanning
    assert described(ecr_call)["imageScanningConfiguration"] == scanning
    ecr_call("put_image_scanning_configuration", imageScanningConfiguration={})
    assert described(ecr_call)["imageScanningConfiguration"] == {"scanOnPush": False}


def test_keeps_what_a_repository_is_created_with(ecr_call: Caller) -> None:
    settings: dict[str, Any] = {
        "imageTagMutability": "IMMUTABLE",
        "imageScanningConfiguration": {"scanOnPush": True},
        "encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": "alias/key"},
    }
    created = ecr_call("create_repository", repositoryName="other", **settings)["repository"]
    for repository in (created, described(ecr_call, "other")):
        assert {name: repository[name] for name in settings} == settings
    assert described(ecr_call)["encryptionConfiguration"] == {"encryptionType": "AES256"}


# Policies


def test_keeps_repository_policy(call: Caller) -> None:
    for method in ("get_repository_policy", "delete_repository_policy"):
        error = call(method)
        assert error["code"] == "RepositoryPolicyNotFoundException"
        assert error["message"] == (
            "Repository policy does not exist for the repository with name 'demo' in the registry "
            "with id '012345678910'"
        )
    expected = {"registryId": "012345678910", "repositoryName": "demo", "policyText": POLICY}
    assert call("set_repository_policy", policyText=POLICY) == expected
    assert call("get_repository_policy") == expected
    assert call("delete_repository_policy") == expected
    assert call("get_repository_policy")["code"] == "RepositoryPolicyNotFoundException"
    error = call("set_repository_policy", repositoryName="none", policyText=POLICY)
    assert error["code"] == "RepositoryNotFoundException"


def test_keeps_lifecycle_policy(ecr_call: Caller) -> None:
    for method in ("get_lifecycle_policy", "delete_lifecycle_policy"):
        error = ecr_call(method)
        assert error["code"] == "LifecyclePolicyNotFoundException"
        assert error["message"].startswith("Lifecycle policy does not exist for the repository ")
    ecr_call("set_repository_policy", policyText=POLICY)  # a policy of the other kind
    put = ecr_call("put_lifecycle_policy", lifecyclePolicyText=LIFECYCLE_POLICY)
    assert put["lifecyclePolicyText"] == LIFECYCLE_POLICY
    assert ecr_call("get_lifecycle_policy") == put
    assert ecr_call("delete_lifecycle_policy") == put
    assert ecr_call("get_lifecycle_policy")["code"] == "LifecyclePolicyNotFoundException"
    assert ecr_call("get_repository_policy")["policyText"] == POLICY


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN}', "[" * 9_999], ids=len)
def test_rejects_policy_that_is_no_json_object(text: str, ecr_call: Caller) -> None:
    error = ecr_call("set_repository_policy", policyText=text)
    assert error["code"] == "InvalidParameterException"
    assert error["message"] == (
        "Invalid parameter at 'PolicyText' failed to satisfy constraint: "
        "'Invalid repository policy provided'"
    )


# The catalog of ECR Public


def test_keeps_catalog_data(public_call: Caller) -> None:
    error = public_call("get_repository_catalog_data")
    assert error["code"] == "RepositoryCatalogDataNotFoundException"
    data = {"description": "A demo", "architectures": ["ARM 64"], "aboutText": "# About"}
    logo = {"logoImageBlob": b"a logo"}
    put = public_call("put_repository_catalog_data", catalogData=data | logo)
    assert put == {"catalogData": data}
    assert public_call("get_repository_catalog_data") == {"catalogData": data}
    public_call("put_repository_catalog_data", catalogData={})
    assert public_call("get_repository_catalog_data") == {"catalogData": {}}

    created = public_call("create_repository", repositoryName="other", catalogData=data)
    assert created["catalogData"] == data
    answer = public_call("get_repository_catalog_data", repositoryName="other")
    assert answer == {"catalogData": data}
    assert "catalogData" not in public_call("create_repository", repositoryName="none")


@pytest.mark.parametrize(
    ("logo", "constraint"),
    [
        ("not base64", "Member must be a blob"),
        (1, "Member must be a blob"),
        ("bG9n" * 200_000, "Member must have length less than or equal to 512000"),
    ],
    ids=["text", "number", "large"],
)
def test_rejects_invalid_logo(logo: object, constraint: str, ecr: LocalECR) -> None:
    parameters = {"repositoryName": "demo", "catalogData": {"logoImageBlob": logo}}
    with pytest.raises(Exception, match=constraint) as raised:
        ecr.registry.call("PutRepositoryCatalogData", parameters, public=True)
    assert "at 'catalogData.logoImageBlob'" in str(raised.value)


def test_describes_registry(ecr: LocalECR, public_call: Caller) -> None:
    (registry,) = public_call.client.describe_registries()["registries"]
    repository = described(public_call)
    assert registry["registryId"] == repository["registryId"]
    assert repository["repositoryUri"] == f"{registry['registryUri']}/demo"
    assert registry["registryUri"] in ecr.endpoint_url


# Tags of repositories


def tags_of(client: Any, arn: str) -> dict[str, str]:
    tags = client.list_tags_for_resource(resourceArn=arn)["tags"]
    return {tag["Key"]: tag["Value"] for tag in tags}


def as_list(tags: dict[str, str]) -> list[Any]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def test_keeps_tags_of_repository(ecr: LocalECR, service: str) -> None:
    client: Any = ecr.client(service)
    created = client.create_repository(repositoryName="a/b", tags=as_list({"team": "x"}))
    arn = created["repository"]["repositoryArn"]
    assert tags_of(client, arn) == {"team": "x"}
    assert client.tag_resource(resourceArn=arn, tags=as_list({"team": "y", "cost": ""}))
    assert tags_of(client, arn) == {"team": "y", "cost": ""}
    client.untag_resource(resourceArn=arn, tagKeys=["team", "none"])
    assert tags_of(client, arn) == {"cost": ""}
    assert tags_of(client, described(Caller(client))["repositoryArn"]) == {}


@pytest.mark.parametrize(
    ("arn", "code"),
    [
        ("demo", "InvalidParameterException"),
        ("arn:aws:ecs:us-east-1:012345678910:repository/demo", "InvalidParameterException"),
        ("arn:aws:ecr:us-east-1:012345678910:registry/demo", "InvalidParameterException"),
        ("arn:aws:ecr:us-east-1:012345678910:repository/none", "RepositoryNotFoundException"),
        ("arn:aws:ecr:us-east-1:210987654321:repository/demo", "RepositoryNotFoundException"),
        ("arn:aws-cn:ecr:cn-north-1:012345678910:repository/demo", ""),  # any region
    ],
)
def test_finds_repository_by_arn(arn: str, code: str, ecr: LocalECR) -> None:
    client = ecr.client()
    calls: list[tuple[Any, dict[str, Any]]] = [
        (client.list_tags_for_resource, {}),
        (client.tag_resource, {"tags": []}),
        (client.untag_resource, {"tagKeys": []}),
    ]
    for method, parameters in calls:
        found = ""
        try:
            method(resourceArn=arn, **parameters)
        except ClientError as error:
            found = error.response["Error"]["Code"]
        assert found == code


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"": "value"}, "InvalidTagParameterException"),
        ({"k" * 129: "value"}, "InvalidTagParameterException"),
        ({"key": "v" * 257}, "InvalidTagParameterException"),
        ({"AWS:key": "value"}, "InvalidTagParameterException"),
        ({f"key{number}": "" for number in range(51)}, "TooManyTagsException"),
        ({"k" * 128: "v" * 256}, ""),
        ({f"key{number}": "" for number in range(50)}, ""),
    ],
    ids=["empty", "long key", "long value", "reserved", "too many", "longest", "most"],
)
def test_checks_tags(tags: dict[str, str], code: str, ecr: LocalECR) -> None:
    call = Caller(ecr.client(config=Config(parameter_validation=False)))
    created = call("create_repository", repositoryName="new", tags=as_list(tags))
    assert created.get("code", "") == code
    client = ecr.client()
    arn = described(Caller(client))["repositoryArn"]
    if code:
        with pytest.raises(ClientError, match=code):
            client.tag_resource(resourceArn=arn, tags=as_list(tags))
    else:
        client.tag_resource(resourceArn=arn, tags=as_list(tags))
    assert tags_of(client, arn) == ({} if code else tags)


def test_counts_tags_that_are_there_already(ecr: LocalECR) -> None:
    client = ecr.client()
    arn = described(Caller(client))["repositoryArn"]
    tags = as_list({f"key{number}": "" for number in range(50)})
    client.tag_resource(resourceArn=arn, tags=tags)
    client.tag_resource(resourceArn=arn, tags=tags)
    with pytest.raises(client.exceptions.TooManyTagsException, match="50 tags"):
        client.tag_resource(resourceArn=arn, tags=as_list({"one more": ""}))

"""LocalECR refuses signatures that are too old, if it is told to."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from ecr_parts.testing import LocalECR, Unknowns


def call(ecr: LocalECR, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    target = "AmazonEC2ContainerRegistry_V20150921.InitiateLayerUpload"
    connection = http.client.HTTPConnection(urlsplit(ecr.endpoint_url).netloc)
    body = json.dumps({"repositoryName": "demo"})
    with closing(connection):
        connection.request("POST", "/", body, {"X-Amz-Target": target, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_refuses_signatures_that_are_too_old() -> None:
    with LocalECR(unknowns=Unknowns(signature_age=300)) as ecr:
        status, answer = call(ecr, {"X-Amz-Date": "20160223T110202Z"})
        assert status == 403
        assert answer["__type"] == "InvalidSignatureException"
        assert answer["message"].startswith("Signature expired: 20160223T110202Z is now earlier ")
        assert answer["message"].endswith("Z - 5 min.)")
        assert [call.outcome for call in ecr.calls] == ["InvalidSignatureException"]
        assert ecr.client().initiate_layer_upload(repositoryName="demo")["uploadId"]


@pytest.mark.parametrize("headers", [{}, {"X-Amz-Date": "yesterday"}], ids=["none", "malformed"])
def test_accepts_requests_that_are_not_signed(headers: dict[str, str]) -> None:
    with LocalECR(unknowns=Unknowns(signature_age=300)) as ecr:
        assert call(ecr, headers)[0] == 200


def test_accepts_any_signature_by_default() -> None:
    with LocalECR() as ecr:
        assert call(ecr, {"X-Amz-Date": "20160223T110202Z"})[0] == 200

"""The ``repr`` of a ``LayerUploader`` names its repository and endpoint, without passwords."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers import OPERATIONS

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

METHODS: dict[str, Any] = dict.fromkeys(OPERATIONS.values(), print)
"""The methods that a client must have. None of them is called here."""


def client_at(endpoint_url: str, service: str = "ecr") -> Any:
    return LocalECR().client(service, endpoint_url=endpoint_url)


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_shows_repository_and_endpoint(service: str) -> None:
    uploader = LayerUploader(client_at("http://127.0.0.1:9", service), "team/demo")
    assert repr(uploader) == "<LayerUploader for repository 'team/demo' at http://127.0.0.1:9>"


def test_shows_registry_id() -> None:
    client = client_at("http://127.0.0.1:9")
    uploader = LayerUploader(client, "demo", registry_id="012345678910")
    assert repr(uploader) == (
        "<LayerUploader for repository 'demo', registry_id='012345678910' at http://127.0.0.1:9>"
    )


def test_shows_no_password_of_endpoint_url() -> None:
    uploader = LayerUploader(client_at("http://user:secret@127.0.0.1:9"), "demo")
    assert repr(uploader) == "<LayerUploader for repository 'demo' at http://127.0.0.1:9>"


@pytest.mark.parametrize(
    "attributes",
    [{}, {"meta": None}, {"meta": SimpleNamespace()}, {"meta": SimpleNamespace(endpoint_url=7)}],
    ids=str,
)
def test_omits_endpoint_of_other_clients(attributes: dict[str, Any]) -> None:
    client: Any = SimpleNamespace(**METHODS, **attributes)
    assert repr(LayerUploader(client, "demo")) == "<LayerUploader for repository 'demo'>"
    assert repr(LayerUploader(client, "demo", registry_id="7")) == (
        "<LayerUploader for repository 'demo', registry_id='7'>"
    )

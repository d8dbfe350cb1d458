from __future__ import annotations

import inspect
import pickle

import pytest

import ecr_parts
from ecr_parts import (
    EcrPartsError,
    Part,
    SentPart,
    ServiceError,
    UploadedLayer,
    UploadLostError,
    UploadSession,
)
from ecr_parts import errors as room

ERRORS = [
    thing
    for _, thing in inspect.getmembers(room, inspect.isclass)
    if thing.__module__ == room.__name__
]


@pytest.mark.parametrize("error", ERRORS)
def test_all_errors_are_one_tree_and_exported(error: type[Exception]) -> None:
    assert issubclass(error, EcrPartsError)
    assert getattr(ecr_parts, error.__name__) is error


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_pickles_with_what_it_carries(error: type[EcrPartsError]) -> None:
    raised = error("what, where, what to do")
    assert raised.session is None
    assert raised.parts == ()
    raised.session = UploadSession(repository_name="r", upload_id="u", part_size=1)
    raised.parts = (SentPart(Part(0, 1), seconds=0.5, attempts=2),)
    if isinstance(raised, ServiceError):
        raised.operation, raised.code, raised.request_id = "UploadLayerPart", "Code", "id"

    twin = pickle.loads(pickle.dumps(raised))

    assert type(twin) is error
    assert str(twin) == "what, where, what to do"
    assert twin.__dict__ == raised.__dict__


def test_a_lost_upload_is_a_service_error() -> None:
    error = UploadLostError(
        "m", operation="UploadLayerPart", repository_name="r", code="c", request_id="i"
    )
    assert isinstance(error, ServiceError)
    assert (error.operation, error.repository_name) == ("UploadLayerPart", "r")
    assert (error.code, error.request_id) == ("c", "i")


def test_results_pickle() -> None:
    layer = UploadedLayer("sha256:00", 2, existed=False, parts=(SentPart(Part(0, 1), 0.5, 1),))
    twin = pickle.loads(pickle.dumps(layer))
    assert twin == layer
    assert twin.parts == layer.parts


@pytest.mark.parametrize("error", ERRORS)
def test_a_message_is_one_line_without_control_characters(error: type[EcrPartsError]) -> None:
    raised = error("upload \x1b[2J\r\n\u202e " + "x" * 10**6)
    assert str(raised).isprintable()
    assert len(str(raised)) <= 4_000

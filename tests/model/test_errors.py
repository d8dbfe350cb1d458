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

ERRORS = [
    value
    for _, value in inspect.getmembers(ecr_parts.errors, inspect.isclass)
    if issubclass(value, BaseException)
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_have_one_base_class_and_are_exported(error: type[Exception]) -> None:
    assert issubclass(error, EcrPartsError)
    assert getattr(ecr_parts, error.__name__) is error


@pytest.mark.parametrize("error", ERRORS)
def test_errors_can_be_pickled_with_their_attributes(error: type[EcrPartsError]) -> None:
    raised = error("the message")
    assert raised.session is None
    assert raised.parts == ()
    raised.session = UploadSession(repository_name="r", upload_id="u", part_size=1)
    raised.parts = (SentPart(Part(0, 1), seconds=0.5, attempts=2),)
    if isinstance(raised, ServiceError):
        raised.operation, raised.code, raised.request_id = "UploadLayerPart", "Code", "id"

    copy = pickle.loads(pickle.dumps(raised))

    assert type(copy) is error
    assert str(copy) == "the message"
    assert copy.__dict__ == raised.__dict__


def test_upload_lost_error_is_a_service_error() -> None:
    error = UploadLostError(
        "m", operation="UploadLayerPart", repository_name="r", code="c", request_id="i"
    )
    assert isinstance(error, ServiceError)
    assert (error.operation, error.repository_name) == ("UploadLayerPart", "r")
    assert (error.code, error.request_id) == ("c", "i")


def test_results_can_be_pickled() -> None:
    layer = UploadedLayer("sha256:00", 2, existed=False, parts=(SentPart(Part(0, 1), 0.5, 1),))
    copy = pickle.loads(pickle.dumps(layer))
    assert copy == layer
    assert copy.parts == layer.parts


@pytest.mark.parametrize("error", ERRORS)
def test_message_is_one_printable_line_of_limited_length(error: type[EcrPartsError]) -> None:
    raised = error("upload \x1b[2J\r\n\u202e " + "x" * 10**6)
    assert str(raised).isprintable()
    assert len(str(raised)) <= 4_000

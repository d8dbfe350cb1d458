"""What the library logs, in the words of a user."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

import ecr_parts
from ecr_parts import LayerUploader
from ecr_parts._command.messages import PHRASES, describe, message_of
from ecr_parts._images.observer import Summary
from ecr_parts._upload.current import Uploading
from ecr_parts._wire.gate import Overlap
from ecr_parts.testing import EcrError, LocalECR

MIB = 1024 * 1024
DIGEST = f"sha256:{'ab12' * 16}"


def literals_of_the_library() -> Iterator[str]:
    for path in Path(ecr_parts.__file__).parent.rglob("*.py"):
        if path.name != "messages.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_each_phrase_is_for_something_that_is_logged() -> None:
    """A message of the library that is changed must be changed here, too."""
    assert set(PHRASES) <= set(literals_of_the_library())


def message(text: str, *arguments: object) -> str | None:
    return message_of(logging.LogRecord("ecr_parts", logging.INFO, "", 0, text, arguments, None))


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (Summary(6, 445 * MIB, 3, 120 * MIB), "6 layers, 445 MiB, of which ECR lacks 3 (120 MiB)"),
        (Summary(1, 5 * MIB, 1, 5 * MIB), "1 layer, 5.0 MiB, which ECR lacks"),
        (Summary(2, 5 * MIB, 0, 0), "2 layers, 5.0 MiB, all of which ECR has already"),
        (
            Summary(2, 5 * MIB, 0, 99),
            "2 layers, 5.0 MiB, of which ECR lacks only the configuration (99 bytes)",
        ),
        (
            Summary(2, 5 * MIB, 2, 99, to_prepare=2, to_compress=2),
            "2 layers, 5.0 MiB, which are compressed before being sent",
        ),
        (
            Summary(2, 5 * MIB, 2, 99, to_prepare=2, to_compress=1),
            "2 layers, 5.0 MiB, 1 of which is compressed before being sent",
        ),
        (Summary(2, 5 * MIB, 2, 99, to_prepare=1), "2 layers, 5.0 MiB"),
    ],
)
def test_says_what_is_about_to_be_sent(summary: Summary, text: str) -> None:
    assert describe(summary) == text


def test_names_the_layer_and_how_far_it_is() -> None:
    with Uploading(DIGEST, 62_914_560):
        text = message("resuming upload %s at byte %d", "ID", 31_457_280)
    assert text == "layer sha256:ab12ab12ab12…: continuing at 31,457,280 of 62,914,560 bytes"
    assert message("resuming upload %s at byte %d", "ID", 5) == "the layer: continuing at 5 bytes"


@pytest.mark.parametrize(
    ("description", "text"),
    [
        ("ConnectionClosedError: Connection was closed before …", "the connection was lost"),
        ("AttemptTimeoutError: no answer within 900 seconds", "no answer within 900 seconds"),
        ("OddException: something new", "OddException: something new"),
        ("504", "504"),
    ],
)
def test_part_that_was_sent_ahead_is_sent_again(description: str, text: str) -> None:
    template = "%s, sent ahead: %s; trying again in its turn"
    with Uploading(None, None):
        assert (
            message(template, "call", description) == f"the layer: {text}; sending the part again"
        )


def test_fragments_are_told_by_what_ecr_has() -> None:
    event = "bytes 0-9: a fragment of a part is stored (ECR has the layer up to byte 5242879)"
    with Uploading(DIGEST, None):
        text = message("%s; %s%s", event, "continuing after the fragment", " at byte 5242880")
    assert text == (
        "layer sha256:ab12ab12ab12…: ECR has the layer up to byte 5,242,879; continuing after the "
        "fragment at byte 5,242,880"
    )


def test_checkpoint_of_another_layer() -> None:
    (template,) = [text for text in PHRASES if text.startswith("not resuming")]
    assert message(template) == (
        "the layer: starting at the beginning, because its saved progress cannot be continued"
    )


def test_parts_that_are_sent_ahead_no_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Overlap(enabled=True).end("ConnectionClosedError: …")
    assert [message_of(record) for record in caplog.records] == [
        "from now on, each part is sent after the one before: the connection was lost"
    ]


def test_what_a_user_need_not_know_is_not_said(
    caplog: pytest.LogCaptureFixture, mocker: MockerFixture
) -> None:
    mocker.patch("ecr_parts._base.threads.Waiter.sleep")
    caplog.set_level(logging.INFO)
    with LocalECR() as ecr:
        ecr.fail("CompleteLayerUpload", "answer_lost", times=99)
        denied = EcrError("AccessDeniedException", "no")
        ecr.respond("BatchCheckLayerAvailability", denied, times=99)
        with pytest.raises(ecr_parts.ServiceError):
            LayerUploader(ecr.client(), "demo").upload(b"layer", check_existing=False)
    texts = [message_of(record) for record in caplog.records if record.name == "ecr_parts"]
    assert texts[-1] is None


@pytest.mark.parametrize("text", [text for text in PHRASES if text.startswith("cannot ")])
def test_questions_that_need_not_be_answered_are_not_mentioned(text: str) -> None:
    assert message(text, *["a"] * text.count("%s")) is None

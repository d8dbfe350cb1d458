"""Signatures that are refused for their time."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from pytest_mock import MockerFixture

from ecr_parts._wire.signature import SigningTime, clock_remedy, has_expired

EXPIRED = (
    "Signature expired: 20160223T110202Z is now earlier than 20160223T110243Z "
    "(20160223T110743Z - 5 min.)"
)
NOT_YET_CURRENT = (
    "Signature not yet current: 20160223T120000Z is still later than 20160223T110500Z "
    "(20160223T110000Z + 5 min.)"
)


def error(code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "UploadLayerPart")


@pytest.mark.parametrize(
    "failure",
    [
        error("InvalidSignatureException", EXPIRED),
        error("InvalidSignatureException", "Signature expired"),
        error("SignatureDoesNotMatch", EXPIRED),
        error("RequestExpired", "Request has expired."),
    ],
    ids=str,
)
def test_recognizes_expired_signatures(failure: ClientError) -> None:
    assert has_expired(failure)


@pytest.mark.parametrize(
    "failure",
    [
        error("InvalidSignatureException", NOT_YET_CURRENT),
        error("InvalidSignatureException", "The signature does not match"),
        error("ExpiredTokenException", "The security token included in the request is expired"),
        error("ServerException", EXPIRED),
        EndpointConnectionError(endpoint_url="https://expired.example"),
    ],
    ids=str,
)
def test_other_errors_are_not_expired_signatures(failure: Exception) -> None:
    assert not has_expired(failure)


@pytest.mark.parametrize(
    ("message", "age", "remedy"),
    [
        (EXPIRED, 1, "This machine's clock is 340 s behind: set it, for example by NTP"),
        (EXPIRED, 280, "This machine's clock is 61 s behind: set it, for example by NTP"),
        (EXPIRED, 281, "This machine's clock is 60 s behind: set it, for example by NTP"),
        (EXPIRED, 282, None),
        (EXPIRED, 400, None),
        (EXPIRED, 401, "This machine's clock is 60 s ahead: set it, for example by NTP"),
        (
            EXPIRED.replace("110743", "110203"),
            1,
            "This machine's clock is 0 s behind: set it, for example by NTP",
        ),
        (NOT_YET_CURRENT, 1, "This machine's clock is 3,601 s ahead: set it, for example by NTP"),
        ("Signature expired", 1, "Set this machine's clock, for example by NTP"),
        ("Signature expired", 2, None),
        ("Signature expired: 20161399T110202Z 20160223T110243Z", 400, None),
        ("The signature does not match", 1, None),
    ],
)
def test_says_by_how_much_the_clock_is_wrong(message: str, age: float, remedy: str | None) -> None:
    assert clock_remedy(error("InvalidSignatureException", message), age) == remedy


def test_age_includes_sleep_of_machine(mocker: MockerFixture) -> None:
    clock = mocker.patch("ecr_parts._wire.signature.time")
    signed = SigningTime(monotonic=10.0, wall=1_000.0)
    clock.monotonic.return_value, clock.time.return_value = 12.0, 1_400.0
    assert signed.age == 400
    clock.time.return_value = 5.0  # the clock was set back
    assert signed.age == 2

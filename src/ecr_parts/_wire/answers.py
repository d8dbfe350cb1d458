"""ECR's answers, checked: what they say, or what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

from botocore.exceptions import ClientError

from ecr_parts._base.validation import is_name, short_repr
from ecr_parts._model.parts import Part
from ecr_parts._wire.failures import CallFailed, WrongDigestError
from ecr_parts._wire.registries import parse_repository
from ecr_parts._wire.retry import BadAnswerError, describe_error, error_code, error_message

_T = TypeVar("_T")

Answer: TypeAlias = Mapping[str, object]


class Availability(NamedTuple):
    """What ECR answers about a layer."""

    status: str
    """``AVAILABLE``, ``UNAVAILABLE`` or ``ARCHIVED``."""
    size: int | None
    """Bytes."""

    @property
    def is_available(self) -> bool:
        """Whether the layer can be pulled. One that is archived must be restored first."""
        return self.status == "AVAILABLE"


class PartAnswer(NamedTuple):
    """What ECR answers to a part."""

    last_byte: int
    """The last byte of the layer that ECR has, -1 if it has none."""
    refused: bool
    """Whether ECR refused the part because it starts at the wrong byte."""


def parse_availability(answer: Answer) -> dict[str, Availability]:
    """The layers in an answer to BatchCheckLayerAvailability, by digest."""
    return {
        _member(layer, "layerDigest", str): Availability(
            _member(layer, "layerAvailability", str), _layer_size(layer)
        )
        for layer in _member(_with_layers(answer), "layers", list)
    }


def parse_upload(answer: Answer) -> tuple[str, int]:
    """The upload ID and the part size (bytes) in an answer to InitiateLayerUpload."""
    upload_id = _member(answer, "uploadId", str)
    part_size = _member(answer, "partSize", int)
    if not is_name(upload_id) or part_size < 1:
        raise BadAnswerError(
            f"uploadId must be a name and partSize positive, not {short_repr(upload_id)} "
            f"and {part_size}",
            transient=False,
        )
    return upload_id, part_size


def parse_received(part: Part, answer: Answer) -> PartAnswer:
    """What ECR has after it accepted ``part``."""
    last_byte = _member(answer, "lastByteReceived", int)
    # AWS's reference says "the last byte received in the request", which leaves open whether it
    # counts from the layer's first byte or from the part's. A value before the part, which ECR has
    # accepted, is taken as counted from the part if it fits. If that is wrong, the next answer will
    # tell.
    if last_byte == part.size - 1 and last_byte < part.first_byte:
        last_byte = part.last_byte
    return PartAnswer(last_byte, refused=False)


def parse_part_refusal(error: ClientError) -> PartAnswer | None:
    """What ECR has if it refused a part because of its first byte; ``None`` for other errors."""
    if error_code(error) != "InvalidLayerPartException":
        return None
    return PartAnswer(last_valid_byte(error.response), refused=True)


def check_completed(digest: str, answer: Answer) -> None:
    """Raise ``WrongDigestError`` if ECR completed a layer with another digest."""
    answered = _member(answer, "layerDigest", str)
    if answered != digest:
        raise WrongDigestError(digest, f"ECR answered {short_repr(answered)}")


def check_complete_refusal(digest: str, error: ClientError) -> None:
    """Raise ``WrongDigestError`` if the bytes that ECR received do not match ``digest``."""
    if error_code(error) == "InvalidLayerException":
        raise WrongDigestError(digest, describe_error(error)) from error


def parse_images(answer: Answer) -> set[str]:
    """The digests of the images in an answer to DescribeImages, except archived ones.

    An image that is being restored still counts as archived. ECR Public has no archive.
    """
    return {
        _member(image, "imageDigest", str)
        for image in _member(answer, "imageDetails", list)
        if not isinstance(image, Mapping) or image.get("imageStatus") in (None, "ACTIVE")
    }


def parse_image_ids(answer: Answer) -> set[str]:
    """The digests of the images in an answer to BatchGetImage."""
    images = _member(answer, "images", list)
    return {_member(_member(image, "imageId", dict), "imageDigest", str) for image in images}


def parse_mutability(answer: Answer) -> bool:
    """Whether an answer to DescribeRepositories says that tags can be overwritten, or says nothing.

    A mode with exclusions depends on the tag, so nothing is known of it.
    """
    (repository, *_) = _member(answer, "repositories", list) or [{}]
    return isinstance(repository, dict) and repository.get("imageTagMutability") != "IMMUTABLE"


def parse_repository_uri(answer: Answer) -> tuple[str, str | None]:
    """The repository's URI in an answer to DescribeRepositories, and the alias in it, if any."""
    (repository, *_) = _member(answer, "repositories", list) or [None]
    uri = _member(repository, "repositoryUri", str)
    try:
        return uri, parse_repository(uri).public_alias
    except ValueError:
        return uri, None


def check_put_image(digest: str, answer: Answer) -> bool:
    """Raise ``BadAnswerError`` unless ECR stored the manifest with ``digest``."""
    stored = _member(_member(_member(answer, "image", dict), "imageId", dict), "imageDigest", str)
    if stored != digest:
        raise BadAnswerError(f"it has {short_repr(stored)} instead of {digest}", transient=False)
    return True


def parse_put_image_refusal(error: ClientError) -> bool | None:
    """``True`` if ECR has the image already; ``None`` for other errors."""
    return True if error_code(error) == "ImageAlreadyExistsException" else None


def parse_error(
    error: Exception,
    parse_refusal: Callable[[ClientError], _T | None],
    secrets: Collection[str],
) -> _T | CallFailed:
    """What ECR answered if ``error`` is an answer, or why the attempt failed.

    ``secrets`` are those of ``CallFailed.of``.
    """
    if isinstance(error, ClientError):
        try:
            answered = parse_refusal(_check_error(error))
        except Exception as parse_error:  # noqa: BLE001  (of an answer that can be anything)
            return CallFailed.of(parse_error, secrets)
        if answered is not None:
            return answered
    return CallFailed.of(error, secrets)


def _check_error(error: ClientError) -> ClientError:
    """Raise ``BadAnswerError`` unless ``error``, which any client may raise, has a response."""
    if not isinstance(error.response, Mapping):
        raise BadAnswerError("its error has no response", transient=False)
    return error


def check_answer(answer: object) -> Answer:
    """Raise ``BadAnswerError`` unless ``answer`` is a mapping."""
    if not isinstance(answer, Mapping):
        raise BadAnswerError(f"it is {short_repr(answer)}, not a mapping", transient=False)
    return answer


def _layer_size(layer: Answer) -> int | None:
    if layer.get("layerSize") is None or layer["layerAvailability"] == "UNAVAILABLE":
        return None
    size = _member(layer, "layerSize", int)
    if size < 1:
        raise BadAnswerError(f"its layerSize is {size}", transient=False)
    return size


def _with_layers(answer: Answer) -> Answer:
    """Add an empty ``layers``, which ECR may omit, to an answer that has ``failures``."""
    return {"layers": [], **answer} if "failures" in answer else answer


def _member(answer: object, name: str, kind: type[_T]) -> _T:
    value = answer.get(name) if isinstance(answer, Mapping) else None
    if value is None:
        raise BadAnswerError(f"it has no {name}", transient=True)
    too_large = isinstance(value, int) and value.bit_length() > 63
    if not isinstance(value, kind) or isinstance(value, bool) or too_large:
        raise BadAnswerError(f"its {name} is {short_repr(value)}", transient=False)
    return value


def last_valid_byte(response: Mapping[str, object]) -> int:
    """The last byte that ECR has, from ``InvalidLayerPartException``; -1 if it has none.

    It is unknown which ``lastValidByteReceived`` means that nothing is stored. -1, 0 and a missing
    value are taken to mean that, unless the message names the byte that ECR expects ("First byte
    of the layer part is 10485760 instead of 20971520", as in public reports).
    """
    last_byte = response.get("lastValidByteReceived")
    if last_byte is not None and (checked := _check_byte(last_byte)) > 0:
        return checked
    expected = re.search(r"instead of (\d{1,18})", error_message(response))
    return int(expected[1]) - 1 if expected else -1


def _check_byte(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > 63:
        raise BadAnswerError(f"its lastValidByteReceived is {short_repr(value)}", transient=False)
    return value

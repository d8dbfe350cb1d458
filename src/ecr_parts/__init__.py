"""Upload image layers to Amazon ECR in parts, and get every layer there whole."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time each name is imported when it is first asked for
    from ecr_parts._layer_upload import Layer, SentPart, UploadedLayer
    from ecr_parts._session import UploadSession
    from ecr_parts.chunker import Chunker, Part
    from ecr_parts.errors import (
        CheckpointError,
        DigestMismatchError,
        EcrPartsError,
        EmptyLayerError,
        LayerTooLargeError,
        ServiceError,
        SourceChangedError,
        UnexpectedResponseError,
        UploadLostError,
    )
    from ecr_parts.limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
    from ecr_parts.retry import CLIENT_CONFIG, default_retrying
    from ecr_parts.uploader import LayerUploader

__version__ = "0.1.0"

__all__ = [
    "CLIENT_CONFIG",
    "ECR_LIMITS",
    "ECR_PUBLIC_LIMITS",
    "CheckpointError",
    "Chunker",
    "DigestMismatchError",
    "EcrPartsError",
    "EmptyLayerError",
    "Layer",
    "LayerTooLargeError",
    "LayerUploader",
    "Limits",
    "Part",
    "SentPart",
    "ServiceError",
    "SourceChangedError",
    "UnexpectedResponseError",
    "UploadLostError",
    "UploadSession",
    "UploadedLayer",
    "default_retrying",
]


def __getattr__(name: str) -> object:
    rooms = ("errors", "limits", "chunker", "_session", "retry", "_layer_upload", "uploader")
    for room in rooms if name in __all__ else ():
        module = import_module(f"{__name__}.{room}")
        if hasattr(module, name):
            globals()[name] = found = getattr(module, name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Upload image layers to Amazon ECR in parts, resumably."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from ecr_parts._version import __version__ as __version__

if TYPE_CHECKING:  # at run time, each name is imported when it is first used
    from ecr_parts._model.layers import (
        Blob,
        Layer,
        LayerSource,
        PushedImage,
        SentPart,
        UploadedLayer,
    )
    from ecr_parts._model.limits import ECR_LIMITS, ECR_PUBLIC_LIMITS, Limits
    from ecr_parts._model.parts import Chunker, Part
    from ecr_parts._model.session import UploadSession
    from ecr_parts._upload.layer_file import LayerFile
    from ecr_parts._upload.setup import UploaderOptions
    from ecr_parts._uploader import LayerUploader
    from ecr_parts._wire.api import EcrClient, ImageClient
    from ecr_parts._wire.retry import CLIENT_CONFIG, default_retrying
    from ecr_parts.errors import (
        CheckpointError,
        DigestMismatchError,
        EcrPartsError,
        EmptyLayerError,
        InvalidImageError,
        LayerTooLargeError,
        ServiceError,
        SourceChangedError,
        UnexpectedResponseError,
        UploadLostError,
    )

__all__ = [
    "CLIENT_CONFIG",
    "ECR_LIMITS",
    "ECR_PUBLIC_LIMITS",
    "Blob",
    "CheckpointError",
    "Chunker",
    "DigestMismatchError",
    "EcrClient",
    "EcrPartsError",
    "EmptyLayerError",
    "ImageClient",
    "InvalidImageError",
    "Layer",
    "LayerFile",
    "LayerSource",
    "LayerTooLargeError",
    "LayerUploader",
    "Limits",
    "Part",
    "PushedImage",
    "SentPart",
    "ServiceError",
    "SourceChangedError",
    "UnexpectedResponseError",
    "UploadLostError",
    "UploadSession",
    "UploadedLayer",
    "UploaderOptions",
    "default_retrying",
]

logging.getLogger("ecr_parts").addHandler(logging.NullHandler())  # as the logging HOWTO asks for

_MODULES = {
    "_wire.api": ("EcrClient", "ImageClient"),
    "_model.parts": ("Chunker", "Part"),
    "_model.limits": ("ECR_LIMITS", "ECR_PUBLIC_LIMITS", "Limits"),
    "_model.layers": ("Blob", "Layer", "LayerSource", "PushedImage", "SentPart", "UploadedLayer"),
    "_wire.retry": ("CLIENT_CONFIG", "default_retrying"),
    "_model.session": ("UploadSession",),
    "_upload.setup": ("UploaderOptions",),
    "_upload.layer_file": ("LayerFile",),
    "_uploader": ("LayerUploader",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

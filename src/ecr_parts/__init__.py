"""Upload image layers to Amazon ECR in parts, and get every layer there whole."""

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
from ecr_parts.run import SentPart, UploadedLayer
from ecr_parts.service import CLIENT_CONFIG, default_retrying
from ecr_parts.session import UploadSession
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

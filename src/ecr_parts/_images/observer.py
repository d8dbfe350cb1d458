"""What a push tells while it goes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

_log = logging.getLogger("ecr_parts")


@dataclass(frozen=True)
class Summary:
    """What is about to be sent: the layers, and in bytes all blobs, those of configs too."""

    layers: int
    size: int
    missing: int
    """The number of layers that ECR lacks."""
    missing_size: int
    to_prepare: int = 0
    """The number of layers that are compressed or checked first: it is not known yet whether ECR
    lacks them."""
    to_compress: int = 0
    """How many of these are compressed."""


class PushObserver:
    """Is told how a push goes on. The command shows it."""

    def begin(self, activity: str) -> None:
        """Called when something begins that takes time and sends nothing; empty if it has ended."""

    def decompressed(self, position: int, size: int) -> None:
        """Called, in any thread, while an archive of ``size`` bytes is decompressed."""

    def start(self, tags: tuple[str, ...], summary: Summary) -> None:
        """Called when it is known what is sent, before anything is."""

    def plan(self, to_send: int, to_read: int) -> None:
        """Called with the bytes of blobs that are planned to be sent, and to be compressed before.

        Later with a negative number, when a layer has become smaller.
        """

    def read(self, size: int) -> None:
        """Called, in any thread, when bytes were read of a layer that is compressed."""

    def notice(self, text: str) -> None:
        """Called with what is not as a user may expect."""
        _log.warning("%s", text)

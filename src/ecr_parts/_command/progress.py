"""How far an upload is, as text: bytes, rate and time left."""

from __future__ import annotations

from collections import deque

_MIB = 1024 * 1024
_WINDOW = 20.0  # seconds of which the rate is the average
_MAX_SAMPLES = 100  # parts
_MIN_SECONDS = 1.0  # in less time, it is a guess


class Progress:
    """Counts confirmed bytes. ``now`` is always the time by one clock, in seconds."""

    def __init__(self, now: float) -> None:
        self.size: int | None = None
        """Bytes in total, if known."""
        self.confirmed = 0
        """The number of bytes that ECR has."""
        self._to_compress = 0
        """Bytes of layers that are compressed before they are sent."""
        self._compressed = 0
        """How many of them were read."""
        self.activity = ""
        """What is done before bytes are sent, such as hashing."""
        self._started = now
        self._sent: deque[tuple[float, int]] = deque(maxlen=_MAX_SAMPLES)
        """When a part was sent, and its size; first of all, when the first one was begun."""

    def plan(self, to_send: int, to_compress: int) -> None:
        """Note how many bytes more will be sent, and how many be compressed before."""
        self.size = (self.size or 0) + to_send
        self._to_compress += to_compress

    def read(self, size: int) -> None:
        """Count bytes that were read to be compressed. Called in one thread at a time."""
        self._compressed += size

    @property
    def done(self) -> float | None:
        """How much is done, if known: 1 is all. To compress a byte and to send it count alike."""
        if not self.size or self.activity:
            return None
        compressed = min(self._compressed, self._to_compress)
        return min(1, (self.confirmed + compressed) / (self.size + self._to_compress))

    def add(self, newly_confirmed: int) -> None:
        """Count confirmed bytes, which are negative if ECR has lost some."""
        self.confirmed += newly_confirmed

    def begin_part(self, now: float) -> None:
        """Note that a part is about to be sent. May be called in any thread."""
        if not self._sent:
            self._sent.append((now, 0))

    def end_part(self, size: int, now: float) -> None:
        """Note that ECR has received a part of ``size`` bytes. May be called in any thread."""
        self._sent.append((now, size))

    def rate(self, now: float) -> float | None:
        """The bytes sent per second; ``None`` if not known yet.

        Bytes that ECR had before do not count, unlike in ``confirmed``.
        """
        sent = list(self._sent)
        while len(sent) > 2 and now - sent[1][0] > _WINDOW:
            del sent[0]
        if len(sent) < 2:
            return None
        start, end = sent[0][0], sent[-1][0]
        # The rate falls if the next part takes longer than the others.
        seconds = max(end - start, now - start - (end - start) / (len(sent) - 1))
        total = sum(size for _, size in sent[1:])
        return total / seconds if seconds >= _MIN_SECONDS and total else None

    def texts(self, now: float) -> list[str]:
        """What to print, the most important first."""
        elapsed = f"{now - self._started:.0f} s elapsed"
        if self.activity:
            return [self.activity, elapsed]
        if self._compressed < self._to_compress:
            read = f"{self._compressed / _MIB:,.1f} of {self._to_compress / _MIB:,.1f} MiB"
            return [f"{self.confirmed / _MIB:,.1f} MiB sent", f"compressing {read}", elapsed]
        total = f" of {self.size / _MIB:,.1f}" if self.size else ""
        amount = f"{self.confirmed / _MIB:,.1f}{total} MiB"
        rate = self.rate(now)
        if rate is None or (self.size is not None and self.confirmed >= self.size):
            return [amount, elapsed]
        texts = [amount, f"{rate / _MIB:,.1f} MiB/s"]
        if self.size:
            texts.append(f"{_duration((self.size - self.confirmed) / rate)} left")
        return texts


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{hours} h"

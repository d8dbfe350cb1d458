"""How far an upload is, as text: bytes, rate and time left."""

from __future__ import annotations

from collections import deque

from ecr_parts._limits import ECR_LIMITS

_MIB = 1024 * 1024
_WINDOW = 20.0  # seconds of which the rate is the average
_MIN_SECONDS = 1.0  # in less time, it is a guess


class Progress:
    """Counts confirmed bytes. ``now`` is always the time by one clock, in seconds."""

    def __init__(self, now: float) -> None:
        self.size: int | None = None
        """Bytes in total, if known."""
        self.confirmed = 0
        """The number of bytes that ECR has."""
        self.activity = ""
        """What is done before bytes are sent, such as hashing."""
        self._started = now
        self._samples: deque[tuple[float, int]] = deque()
        """The time of a confirmation, and the bytes confirmed by then."""

    def add(self, newly_confirmed: int, now: float) -> None:
        """Count bytes, which are negative if ECR has lost some."""
        if not newly_confirmed:
            return
        self.confirmed += newly_confirmed
        if not 0 < newly_confirmed <= ECR_LIMITS.max_part:
            self._samples.clear()  # not a part that was sent: it was lost, or ECR had it before
        self._samples.append((now, self.confirmed))
        while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW:
            self._samples.popleft()

    def rate(self, now: float) -> float | None:
        """Bytes per second; ``None`` if not known yet.

        The first confirmation only starts the clock: in an upload that resumes, it is of bytes that
        were sent earlier.
        """
        if len(self._samples) < 2:
            return None
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        # The rate falls if the next part takes longer than the others.
        seconds = max(end - start, now - start - (end - start) / (len(self._samples) - 1))
        return (last - first) / seconds if seconds >= _MIN_SECONDS else None

    def texts(self, now: float) -> list[str]:
        """What to print, the most important first."""
        elapsed = f"{now - self._started:.0f} s elapsed"
        if self.activity:
            return [self.activity, elapsed]
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

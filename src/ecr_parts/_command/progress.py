"""How far an upload is, as text: bytes, rate and time left."""

from __future__ import annotations

from collections import deque

_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3
_WINDOW = 20.0  # seconds of which the rate is the average
_SAMPLE = 0.2  # seconds; what is sent within it is one sample
_MIN_SECONDS = 1.0  # in less time, it is a guess


class Progress:
    """Counts bytes. ``now`` is always the time by one clock, in seconds.

    What is shown counts the bytes that ECR has confirmed, and those of parts that have left this
    machine: a part takes a minute on a slow uplink. It falls only if ECR has lost bytes, and the
    bar never does.
    """

    def __init__(self, now: float) -> None:
        self.size: int | None = None
        """Bytes in total, if known."""
        self.confirmed = 0
        """The number of bytes that ECR has."""
        self._in_flight: dict[object, int] = {}
        """By request: the bytes of its part that have left."""
        self._shown = 0
        self._done = 0.0
        self._to_compress = 0
        """Bytes of layers that are compressed before they are sent."""
        self._compressed = 0
        """How many of them were read."""
        self._activity = ""
        self._activity_size: int | None = None
        self._activity_done = 0
        self._started = now
        self._sent: deque[tuple[float, int]] = deque()
        """When bytes left, and how many; first of all, when the first request was begun."""

    # What happens

    def begin(self, activity: str, size: int | None = None) -> None:
        """Note what is done while nothing is sent, such as hashing ``size`` bytes; empty if over.

        ``size`` is 0 if the bytes are counted, but their number is not known.
        """
        self._activity, self._activity_size, self._activity_done = activity, size, 0

    def reach(self, position: int) -> None:
        """Note how many bytes the activity is through."""
        self._activity_done = position

    def advance(self, size: int) -> None:
        """Note that the activity is through ``size`` bytes more."""
        self._activity_done += size

    def plan(self, to_send: int, to_compress: int) -> None:
        """Note how many bytes more will be sent, and how many be compressed before."""
        self.size = (self.size or 0) + to_send
        self._to_compress += to_compress

    def read(self, size: int) -> None:
        """Count bytes that were read to be compressed. Called in one thread at a time."""
        self._compressed += size

    def add(self, newly_confirmed: int) -> None:
        """Count confirmed bytes, which are negative if ECR has lost some."""
        self.confirmed += newly_confirmed
        if newly_confirmed < 0:
            self._shown = self.confirmed

    def begin_part(self, request: object, now: float) -> None:
        """Note that a part is about to be sent. May be called in any thread."""
        self._in_flight[request] = 0
        if not self._sent:
            self._sent.append((now, 0))

    def send(self, request: object, size: int, now: float) -> None:
        """Note that ``size`` bytes more of a part have left. May be called in any thread."""
        self._in_flight[request] = self._in_flight.get(request, 0) + size
        last, amount = self._sent[-1]
        if len(self._sent) > 1 and now - last < _SAMPLE:
            self._sent[-1] = (last, amount + size)
        else:
            self._sent.append((now, size))

    def end_part(self, request: object) -> None:
        """Note that a request is over: answered or failed. May be called in any thread."""
        self._in_flight.pop(request, None)

    # What is shown

    @property
    def shown(self) -> int:
        """The bytes that ECR has or that are on their way."""
        in_flight = sum(tuple(self._in_flight.values()))
        position = self.confirmed + in_flight
        if self.size is not None:
            position = min(position, max(self.size, self.confirmed))
        self._shown = max(self._shown, position)
        return self._shown

    @property
    def done(self) -> float | None:
        """How much is done, if known: 1 is all. To compress a byte and to send it count alike."""
        if not self.size or self._activity:
            return None
        compressed = min(self._compressed, self._to_compress)
        done = min(1, (self.shown + compressed) / (self.size + self._to_compress))
        if self.confirmed < self.size:
            done = min(done, 0.99)  # ECR has yet to confirm the end
        self._done = max(self._done, done)
        return self._done

    def rate(self, now: float) -> float | None:
        """The bytes sent per second, of the last 20 seconds; ``None`` if not known yet.

        Bytes that ECR had before do not count, unlike in ``confirmed``.
        """
        if not self._sent:
            return None
        while len(self._sent) > 1 and now - self._sent[1][0] > _WINDOW:
            self._sent.popleft()
            self._sent[0] = (self._sent[0][0], 0)  # the start of what is left
        seconds = now - self._sent[0][0]
        total = sum(size for _, size in tuple(self._sent))
        return total / seconds if seconds >= _MIN_SECONDS and total else None

    def took(self, now: float) -> str:
        """How long it took, as text: ``"0.4 s"``, ``"1 min 35 s"``."""
        seconds = now - self._started
        if seconds < 10:
            return f"{seconds:.1f} s"
        minutes, rest = divmod(round(seconds), 60)
        if minutes < 60:
            return f"{minutes} min {rest} s" if minutes else f"{rest} s"
        return f"{minutes // 60} h {minutes % 60} min"

    def texts(self, now: float) -> list[str]:
        """What to print, the most important first."""
        elapsed = f"{now - self._started:.0f} s elapsed"
        if self._activity:
            return [self._activity, *self._activity_texts(), elapsed]
        shown = self.shown
        if self._compressed < self._to_compress:
            read = f"{self._compressed / _MIB:,.1f} of {self._to_compress / _MIB:,.1f} MiB"
            return [f"{shown / _MIB:,.1f} MiB sent", f"compressing {read}", elapsed]
        total = f" of {self.size / _MIB:,.1f}" if self.size else ""
        position = f"{shown / _MIB:,.1f}{total} MiB"
        rate = self.rate(now)
        if rate is None or (self.size is not None and shown >= self.size):
            return [position, elapsed]
        texts = [position, f"{amount(round(rate))}/s"]
        if self.size:
            texts.append(f"{_duration((self.size - shown) / rate)} left")
        return texts

    def _activity_texts(self) -> list[str]:
        if self._activity_size is None:
            return []
        done = self._activity_done
        if not self._activity_size:
            return [f"{done / _MIB:,.1f} MiB"]
        done = min(done, self._activity_size)
        return [f"{done / _MIB:,.1f} of {self._activity_size / _MIB:,.1f} MiB"]


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{hours} h"


def amount(size: int) -> str:
    """A number of bytes in a readable unit: ``"17 bytes"``, ``"12.0 MiB"``, ``"445 MiB"``."""
    for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if size >= unit:
            value = size / unit
            return f"{value:,.0f} {name}" if value >= 100 else f"{value:,.1f} {name}"
    return f"{size:,} byte{'' if size == 1 else 's'}"

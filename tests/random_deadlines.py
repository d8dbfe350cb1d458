"""Upload and write layers, interrupted at random instants: ``python random_deadlines.py UPLOADS``.

Writes how many uploads were interrupted, and how many exceptions Python dropped: it drops what a
signal handler raises while an object is finalized, which no library can prevent.
"""

from __future__ import annotations

import random
import signal
import sys

from helpers import NO_WAIT, SMALL_LIMITS, digest_of, random_bytes
from interrupts import DeadlineError, joining_new_threads

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR


def write(uploader: LayerUploader, blob: bytes) -> None:
    with uploader.open_layer() as file:
        for start in range(0, len(blob), 3):
            file.write(blob[start : start + 3])


def main(uploads: int) -> None:
    rng = random.Random(uploads)
    raised: list[DeadlineError] = []
    interrupted = dropped = 0

    def raise_deadline(*_signal: object) -> None:
        raised.append(DeadlineError("time is up"))
        raise raised[-1]

    def count_dropped(_unraisable: object) -> None:
        nonlocal dropped
        dropped += 1

    signal.signal(signal.SIGALRM, raise_deadline)
    sys.unraisablehook = count_dropped
    with LocalECR(limits=SMALL_LIMITS, part_size=8) as ecr, joining_new_threads():
        uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT)
        for number in range(uploads):
            raised.clear()
            blob = random_bytes(45, number)
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.02))
            try:
                if number % 3 == 0:
                    uploader.upload(iter([blob]), check_existing=number % 2 == 0)
                elif number % 3 == 1:
                    uploader.upload(blob, check_existing=number % 2 == 0)
                else:
                    write(uploader, blob)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except DeadlineError as error:
                if raised != [error]:
                    raise AssertionError("not what the signal handler raised") from error
                interrupted += 1
            else:
                assert not raised or dropped, "the deadline is lost"
        for digest, layer in ecr.registry.repositories["demo"].layers.items():
            assert digest_of(b"".join(layer.blobs)) == digest
        uploader.upload(b"the uploader still works")
    sys.stdout.write(f"{interrupted} {dropped}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))

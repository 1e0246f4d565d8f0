"""How fast a training run goes, and how long it will take."""

import resource
import time
from collections.abc import Callable

__all__ = ["Pace", "memory_gib"]

_GIB = 2**20  # of KiB


class Pace:
    """Counts images, in the process that trains.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started, self._images = clock(), 0

    def count(self, images: int) -> None:
        self._images += images

    @property
    def per_second(self) -> float:
        """Images per second since the start, with everything that was done between them."""
        return self._images / max(self._clock() - self._started, 1e-9)

    def told(self, left: int) -> str:
        """Speed, time and memory in words, with ``left`` images to go: "90 images/s, …"."""
        rate = self.per_second
        minutes = round(left / rate / 60) if rate else 0
        hours, rest = divmod(minutes, 60)
        words = f"{hours} h {rest:02} min" if hours else f"{rest} min"
        return f"{rate:.0f} images/s, {words} left, {memory_gib():.1f} GiB of memory at most"


def memory_gib() -> float:
    """The most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _GIB

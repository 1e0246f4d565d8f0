"""What was computed of a tenant's images, kept in memory for a while: not each page asks anew."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

__all__ = ["Remembered"]

_MOST = 128
_T = TypeVar("_T")


class Remembered:
    """Values by tenant and name. The one that was used longest ago goes where there are too many.

    Args:
        clock: seconds, never going back.
        most: values that are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, most: int = _MOST) -> None:
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, float, Any]] = OrderedDict()

    def of(
        self,
        tenant: str,
        name: Hashable,
        compute: Callable[[], _T],
        *,
        stamp: Hashable = None,
        seconds: float,
    ) -> _T:
        """The value of this name, computed if it is not there, too old, or of another state.

        Two that ask at once may both compute it: one does not wait for the other.

        Args:
            tenant: whose it is; no other one gets it.
            stamp: of what it is computed from; a value with another stamp is out of date.
            seconds: how old it may be.
        """
        place = tenant, name
        with self._lock:
            found = self._kept.get(place)
            if found is not None and found[0] == stamp and self._clock() < found[1] + seconds:
                self._kept.move_to_end(place)
                return cast(_T, found[2])
        value, began = compute(), self._clock()
        with self._lock:
            self._kept[place] = stamp, began, value
            self._kept.move_to_end(place)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value

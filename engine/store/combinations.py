"""The distinct combinations of those fields of a record that have few values.

An archive has far fewer combinations of modality, body part, maker and so on than images. A row of
the index holds the number of its combination, so that a filter is decided, and values are counted,
once for each combination instead of for each image.
"""

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.files import write_atomically
from engine.records import ImageRecord
from engine.store.base import Match, Range

__all__ = ["COMBINED", "Combinations"]

COMBINED = (
    "tenant",
    "modality",
    "body_part",
    "view",
    "laterality",
    "manufacturer",
    "sex",
    "age_band",
    "study_year",
    "labels",
    "source",
    "burned_in",
)
"""The fields of a record that a combination has, in their order."""
_LABELS = COMBINED.index("labels")
_values_of = attrgetter(*COMBINED)


class Combinations:
    """The combinations of an index, numbered in the order in which they were met.

    They are kept in a file of JSON lines, one array of values each. One thread adds combinations;
    others may read meanwhile those that they know of.
    """

    def __init__(self, path: Path, known: int) -> None:
        """Reads the first ``known`` lines; what follows them is cut off.

        Raises:
            ValueError: there are fewer, or they are damaged.
        """
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._combined: list[tuple[Any, ...] | None] = []
        self._values: list[dict[Any, int]] = [{} for _ in COMBINED]
        # How many numbers of values were given, for each field.
        self._given = [0] * len(COMBINED)
        self.codes = np.zeros((256, len(COMBINED)), np.int32)
        """int32 (T or more, F): the number of the value that a combination has for each field."""
        self.counts = np.zeros(256, np.int64)
        """int64 (T or more,): how many points have the combination. Replaced, never changed."""
        self._path = path
        self._file = path.open("a+b")
        try:
            self._file.seek(0)
            for _ in range(known):
                values = json.loads(self._file.readline())
                if values is not None:
                    values[_LABELS] = tuple(values[_LABELS])
                self._add(None if values is None else tuple(values))
            self._file.truncate(self._file.tell())
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._combined)

    def number_of(self, record: ImageRecord) -> int:
        """The number of the record's combination, which is added if it is new."""
        return self.number_for(_values_of(record))

    def values_of(self, number: int) -> tuple[Any, ...]:
        """The values of a combination in use, in the order of :data:`COMBINED`."""
        values = self._combined[number]
        if values is None:
            raise ValueError(f"combination {number} is in no use")
        return values

    def number_for(self, values: tuple[Any, ...]) -> int:
        """As :meth:`number_of`, for the values in the order of :data:`COMBINED`."""
        found = self._numbers.get(values)
        if found is None:
            self._file.write(_line(values))
            found = self._add(values)
        return found

    def count(self, gone: NDArray[np.integer], new: NDArray[np.integer]) -> None:
        """Points of these combinations have gone, and others came."""
        counts = self.counts.copy()
        np.subtract.at(counts, gone, 1)
        np.add.at(counts, new, 1)
        self.counts = counts

    def forget_unused(self) -> None:
        """Erases the values of combinations that no point has, but for their numbers."""
        unused = np.flatnonzero(self.counts[: len(self)] == 0)
        named = [(number, self._combined[number]) for number in unused.tolist()]
        if not any(values is not None for _, values in named):
            return
        left = list(self._combined)
        for number, _ in named:
            left[number] = None
        write_atomically(self._path, b"".join(map(_line, left)))
        self._file.close()
        self._file = self._path.open("a+b")
        self._combined = left
        self._numbers = {values: at for at, values in enumerate(left) if values is not None}
        for at, known in enumerate(self._values):
            used = {values[at] for values in self._numbers}
            self._values[at] = {value: number for value, number in known.items() if value in used}

    def _add(self, values: tuple[Any, ...] | None) -> int:
        number = len(self._combined)
        if number == len(self.codes):
            self.codes = np.concatenate([self.codes, np.zeros_like(self.codes)])
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
        for at, value in enumerate(values or ()):
            known = self._values[at]
            if value not in known:
                # In this order, as others size arrays by the one to look up in the other.
                self._given[at] += 1
                known[value] = self._given[at] - 1
            self.codes[number, at] = known[value]
        if values is not None:
            self._numbers[values] = number
        self._combined.append(values)
        return number

    def matching(self, condition: Match | Range, count: int) -> NDArray[np.bool_]:
        """For which of the first ``count`` combinations the condition holds: bool (count,)."""
        at = COMBINED.index(condition.field)
        known = list(self._values[at].items())
        # Of combinations that are in no use the number is 0, also where no value was given one.
        holds = np.zeros(max(self._given[at], 1), bool)
        wanted = set(condition.values) if isinstance(condition, Match) else set()
        for value, number in known:
            if isinstance(condition, Range):
                holds[number] = _within(value, condition)
            elif at == _LABELS:
                holds[number] = not wanted.isdisjoint(value)
            else:
                # True equals 1, and a number that happens to be asked for is no truth value.
                holds[number] = value in wanted and value is not None
        return holds[self.codes[:count, at]]

    def counted(self, field: str, weights: NDArray[np.int64], limit: int) -> dict[str, int]:
        """Value → number of points, the most frequent first.

        Args:
            weights: int64 (T,), how many points of each combination to count.
        """
        at = COMBINED.index(field)
        known = list(self._values[at].items())
        sums = np.bincount(self.codes[: len(weights), at], weights, minlength=self._given[at])
        found: dict[str, int] = {}
        for value, number in known:
            count = int(sums[number])
            if count and value is not None:
                for one in dict.fromkeys(value) if at == _LABELS else (value,):
                    name = str(one).lower() if isinstance(one, bool) else str(one)
                    found[name] = found.get(name, 0) + count
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:limit])

    def sync(self) -> None:
        """On return, the combinations added survive the end of this process."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(values: tuple[Any, ...] | None) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _within(value: int | None, bounds: Range) -> bool:
    return (
        isinstance(value, int)
        and (bounds.low is None or value >= bounds.low)
        and (bounds.high is None or value <= bounds.high)
    )

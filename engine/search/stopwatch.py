"""Measures how long each stage of a search takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Wall-clock milliseconds by stage.

    Args:
        before: milliseconds of earlier stages, to start from.
    """

    def __init__(self, before: dict[str, float] | None = None) -> None:
        self.milliseconds = dict(before or {})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """A context that times a stage; a stage that is entered again adds to its time."""
        started = time.perf_counter()
        yield
        passed = (time.perf_counter() - started) * 1000
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + passed

    def rounded(self) -> dict[str, float]:
        return {stage: round(value, 2) for stage, value in self.milliseconds.items()}

"""How long the stages of an answer took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Wall-clock milliseconds by stage.

    Args:
        before: of the stages so far.
    """

    def __init__(self, before: dict[str, float] | None = None) -> None:
        self.milliseconds = dict(before or {})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times what is done within; a stage that comes again adds to its time."""
        started = time.perf_counter()
        yield
        passed = (time.perf_counter() - started) * 1000
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + passed

    def rounded(self) -> dict[str, float]:
        return {stage: round(value, 2) for stage, value in self.milliseconds.items()}

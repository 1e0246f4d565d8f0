"""The learning-rate schedule: a linear warm-up, then half a cosine."""

from math import cos, pi
from typing import Protocol

__all__ = ["Schedule", "learning_rate"]


class Schedule(Protocol):
    """The parameters of the schedule; a training configuration has them."""

    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def final_learning_rate(self) -> float: ...
    @property
    def warmup_epochs(self) -> float: ...


def learning_rate(epoch: float, schedule: Schedule) -> float:
    """The learning rate after ``epoch`` epochs; may be a fraction, 0 = the start."""
    if epoch < schedule.warmup_epochs:
        return schedule.learning_rate * (epoch / schedule.warmup_epochs)
    falling = max(schedule.epochs - schedule.warmup_epochs, 1e-9)
    done = min((epoch - schedule.warmup_epochs) / falling, 1.0)
    span = schedule.learning_rate - schedule.final_learning_rate
    return schedule.final_learning_rate + span * (1 + cos(pi * done)) / 2

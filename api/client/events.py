"""The progress of a job as server-sent events (HTML standard, 9.2.6), read line by line."""

from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from .answers import Job, Problem
from .errors import UnexpectedAnswer, service_error

__all__ = ["BETWEEN_STREAMS", "NOTHING_MORE", "Following", "JobEvent"]

BETWEEN_STREAMS = 1.0
"""Seconds from the end of a stream to the next one."""
NOTHING_MORE = 204
"""Status of the answer to who knows the end."""

_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job has changed ("progress"), or ended ("end"). id: to go on from here, later."""

    kind: Literal["progress", "end"]
    job: Job
    id: str


class Following:
    """What is known of the events of a job, over all connections that bring them.

    Args:
        after: id of the last event that the caller has; "" = none.
    """

    def __init__(self, after: str) -> None:
        self.last_id = after
        self.ended = False
        self._id = after
        self._kind = ""
        self._data: list[str] = []

    def begin(self) -> None:
        """Another connection begins; what the one before did not finish is dropped."""
        self._id, self._kind, self._data = self.last_id, "", []

    def take(self, line: str) -> JobEvent | None:
        """The event that this line ends, if any.

        Raises:
            ServiceError: the service says that the job, or the right to see it, is gone.
            UnexpectedAnswer: an event cannot be read.
        """
        if not line:
            return self._finish()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._id = value
        # A line that begins with a colon is a comment, and other fields are to be ignored.
        return None

    def _finish(self) -> JobEvent | None:
        self.last_id, kind, text = self._id, self._kind, "\n".join(self._data)
        self.begin()
        if kind == "error":
            problem = _read(Problem, text)
            raise service_error(problem, problem.request_id, None)
        if kind == "progress":
            return JobEvent("progress", _read(Job, text), self.last_id)
        if kind == "end":
            self.ended = True
            return JobEvent("end", _read(Job, text), self.last_id)
        return None


def _read(kind: type[_M], text: str) -> _M:
    try:
        return kind.model_validate_json(text)
    except ValidationError:
        raise UnexpectedAnswer(f"an event of the job has no {kind.__name__} in it") from None

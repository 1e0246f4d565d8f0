"""When a request is repeated, and after how long."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["Retries", "told_to_wait"]


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long a call is patient.

    Repeated are answers 429 and 503, after as long as `Retry-After` says, and requests whose
    connection failed; never what may have been done already and would be done twice, such as
    making a job.

    Args:
        attempts: requests in all; 1 = nothing is repeated.
        first_seconds: about so long is waited first where the service does not say how long; twice
            as long each time after.
        longest_seconds: no wait is longer. A service that asks for more is not asked again: its
            answer is raised, and ``retry_after`` of it says how long.

    Raises:
        ValueError: one of them is out of range.
    """

    attempts: int = 5
    first_seconds: float = 0.5
    longest_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; use 1 for none but the first")
        if self.first_seconds < 0 or self.longest_seconds < 0:
            raise ValueError(
                f"first_seconds is {self.first_seconds} and longest_seconds "
                f"{self.longest_seconds}; neither may be negative"
            )

    def wait(self, attempt: int, told: float | None) -> float | None:
        """Seconds until the next attempt; None: there is none.

        Args:
            attempt: the number of the one that failed, from 1.
            told: seconds that the service asks for; None = it does not say.
        """
        if attempt >= self.attempts or (told is not None and told > self.longest_seconds):
            return None
        # Never all at once: others were told to wait as long.
        if told is not None:
            return min(self.longest_seconds, told + random.uniform(0, 0.25 + told / 10))  # noqa: S311
        most: float = min(self.longest_seconds, self.first_seconds * 2 ** min(attempt - 1, 30))
        return random.uniform(most / 2, most)  # noqa: S311


def told_to_wait(header: str | None, now: datetime | None = None) -> float | None:
    """The seconds of a `Retry-After`, which may be a date; None: there is none that can be read."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())

"""The hours of the day in which a source may be read."""

from datetime import datetime, time

__all__ = ["is_open"]


def is_open(window: str | None, now: datetime) -> bool:
    """Whether ``now`` lies within ``window``, "HH:MM-HH:MM".

    The start belongs to it, the end does not; it may pass midnight. None, and a window that ends
    where it starts, are always open.
    """
    if window is None:
        return True
    start, end = (time.fromisoformat(part) for part in window.split("-"))
    at = now.time()
    if start == end:
        return True
    if start < end:
        return start <= at < end
    return at >= start or at < end

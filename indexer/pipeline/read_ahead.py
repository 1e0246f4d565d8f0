"""Runs an iterator in a thread, a bounded number of items ahead of its consumer."""

from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

__all__ = ["read_ahead"]

_T = TypeVar("_T")
_POLL_SECONDS = 0.1


class _End(Generic[_T]):
    """The thread's last entry in the queue: end of the items, or the error that ended them."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def read_ahead(items: Iterable[_T], size: int) -> Generator[_T]:
    """The items in order, up to ``size`` of them produced before they are asked for.

    The whole iterator runs in one thread; closing the generator stops it after the current item.
    An error of the iterator is raised after the items before it were consumed.
    """
    made: Queue[_T | _End[_T]] = Queue(size)
    stopped = Event()

    def put(item: _T | _End[_T]) -> bool:
        while not stopped.is_set():
            try:
                made.put(item, timeout=_POLL_SECONDS)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        end: _End[_T] = _End()
        try:
            iterator = iter(items)
            try:
                for item in iterator:
                    if not put(item):
                        break
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except BaseException as error:
            end = _End(error)
        put(end)

    thread = Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = made.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()

"""Running ahead keeps the order, the bound and the errors of what it runs."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from indexer.pipeline.read_ahead import read_ahead


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def running() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


class Source:
    """Counts what was made of it, and where it ran and ended."""

    def __init__(self, stop: int | None = None, error: BaseException | None = None) -> None:
        self.made = 0
        self.stop = stop
        self.error = error
        self.threads: set[int] = set()
        self.ended_in: int | None = None

    def __iter__(self) -> Iterator[int]:
        try:
            while self.made != self.stop:
                self.threads.add(threading.get_ident())
                self.made += 1
                yield self.made - 1
            if self.error is not None:
                raise self.error
        finally:
            self.ended_in = threading.get_ident()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_the_items_come_in_order(count: int, size: int) -> None:
    assert list(read_ahead(range(count), size)) == list(range(count))
    assert running() == 0


def test_it_runs_ahead_but_not_further_than_asked() -> None:
    source = Source()
    items = read_ahead(source, 3)
    assert next(items) == 0
    # Three wait, and one more was made before there was no place for it.
    assert eventually(lambda: source.made == 5)
    time.sleep(0.3)
    assert source.made == 5
    assert next(items) == 1
    assert eventually(lambda: source.made == 6)
    items.close()


def test_nothing_is_made_before_the_first_item_is_asked_for() -> None:
    source = Source()
    items = read_ahead(source, 3)
    time.sleep(0.1)
    assert source.made == 0
    items.close()


def test_an_error_comes_after_the_items_before_it() -> None:
    source = Source(4, OSError("the disk is gone"))
    items = read_ahead(source, 10)
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert list(items) == []
    assert running() == 0


class CannotStart:
    def __iter__(self) -> Iterator[int]:
        raise OSError("no such archive")


@pytest.mark.timeout(5)
def test_an_iterator_that_cannot_start_is_an_error_and_no_endless_wait() -> None:
    with pytest.raises(OSError, match="no such archive"):
        next(read_ahead(CannotStart(), 1))
    assert running() == 0


def test_ctrl_c_in_the_iterator_is_passed_on() -> None:
    items = read_ahead(Source(1, KeyboardInterrupt()), 5)
    assert next(items) == 0
    with pytest.raises(KeyboardInterrupt):
        next(items)


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_ends_the_thread_and_the_iterator(taken: int) -> None:
    source = Source()
    items = read_ahead(source, 2)
    for _ in range(taken):
        next(items)
    assert running() == 1
    items.close()
    assert running() == 0
    assert source.ended_in is not None
    made = source.made
    time.sleep(0.15)
    assert source.made == made


def test_an_error_of_the_caller_ends_the_thread() -> None:
    source = Source()

    def use() -> None:
        items = read_ahead(source, 2)
        try:
            for item in items:
                if item == 2:
                    raise LookupError
        finally:
            items.close()

    with pytest.raises(LookupError):
        use()
    assert running() == 0


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_the_iterator_lives_in_one_thread_from_start_to_end(ends_by_itself: bool) -> None:
    """A generator over a database or a pool of processes must not change threads."""
    source = Source(5 if ends_by_itself else None)
    items = read_ahead(source, 2)
    next(items)
    if ends_by_itself:
        list(items)
    else:
        items.close()
    assert source.threads == {source.ended_in}
    assert source.ended_in != threading.get_ident()


def test_closing_waits_for_the_item_that_is_being_made() -> None:
    finished = []

    def slow() -> Iterator[int]:
        yield 0
        time.sleep(0.4)
        finished.append(True)
        yield 1

    items = read_ahead(slow(), 1)
    assert next(items) == 0
    items.close()
    assert finished == [True]


def test_a_failure_at_the_end_of_the_iterator_is_not_lost() -> None:
    def bad_end() -> Iterator[int]:
        try:
            yield 0
            yield 1
        finally:
            raise OSError("could not be put away")

    items = read_ahead(bad_end(), 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="put away"):
        next(items)

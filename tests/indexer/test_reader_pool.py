"""The reader pool survives what its tasks do to it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from engine.errors import ImageRefused, PrecedentError, RefusalReason
from indexer.pipeline.reader_pool import ReaderPool

ROOT = Path(__file__).parents[2]


def act(task):
    """Does what a file might make a reader do."""
    verb, argument = task
    if verb == "echo":
        return argument
    if verb == "sleep":
        time.sleep(argument)
        return argument
    if verb == "exit":
        os._exit(argument)
    if verb == "signal":
        os.kill(os.getpid(), argument)
    if verb == "take":
        return len(bytearray(argument))
    if verb == "refuse":
        raise ImageRefused(RefusalReason.NO_PIXELS, argument)
    if verb == "fail":
        raise KeyError(argument)
    if verb == "unpicklable":
        return lambda: None
    if verb == "modules":
        return [name for name in argument if name in sys.modules]
    if verb == "pid":
        return os.getpid()
    raise AssertionError(verb)


def pool(processes=2, seconds=30.0, memory_bytes=1024**3):
    return ReaderPool(act, processes=processes, seconds=seconds, memory_bytes=memory_bytes)


def reasons(results):
    return [answer.reason if isinstance(answer, ImageRefused) else answer for _, answer in results]


def test_results_come_in_the_order_of_the_tasks():
    tasks = [("sleep", 0.05 * (number % 3)) for number in range(12)]
    with pool() as readers:
        assert list(readers.map(tasks)) == [(task, task[1]) for task in tasks]
        assert list(readers.map([])) == []


def test_what_goes_wrong_is_a_result():
    tasks = [
        ("echo", 1),
        ("refuse", "no picture"),
        ("fail", "DOE^JANE"),
        ("unpicklable", 0),
        ("echo", lambda: None),
        ("take", 8 * 1024**3),
        ("echo", 2),
    ]
    with pool(1) as readers:
        results = list(readers.map(tasks))
    assert reasons(results) == [
        1,
        RefusalReason.NO_PIXELS,
        RefusalReason.DAMAGED,
        RefusalReason.DAMAGED,
        RefusalReason.DAMAGED,
        RefusalReason.TOO_LARGE,
        2,
    ]
    assert "KeyError" in results[2][1].detail
    assert "DOE" not in str(results[2][1])


def test_only_the_deadly_task_is_lost():
    tasks = [("echo", 0), ("exit", 3), ("echo", 1), ("signal", signal.SIGSEGV), ("echo", 2)]
    with pool() as readers:
        results = list(readers.map(tasks))
    assert reasons(results) == [0, RefusalReason.READER_DIED, 1, RefusalReason.READER_DIED, 2]
    assert "exit status 3" in results[1][1].detail
    assert "SIGSEGV" in results[3][1].detail


def test_a_worker_that_dies_with_nothing_to_do_costs_no_task():
    with pool(1) as readers:
        [(_, pid)] = readers.map([("pid", 0)])
        os.kill(pid, signal.SIGKILL)
        psutil.Process(pid).wait(5) if psutil.pid_exists(pid) else None
        assert reasons(readers.map([("echo", 1), ("echo", 2)])) == [1, 2]


def test_too_slow():
    with pool(2, seconds=0.5) as readers:
        started = time.monotonic()
        results = list(readers.map([("sleep", 60), ("echo", 1), ("echo", 2)]))
        assert time.monotonic() - started < 15
    assert reasons(results) == [RefusalReason.TOO_SLOW, 1, 2]
    assert "0.5 seconds" in results[0][1].detail


@pytest.mark.slow
def test_a_slow_consumer_makes_no_task_slow():
    with pool(2, seconds=0.5) as readers:
        results = readers.map([("echo", number) for number in range(4)])
        first = next(results)
        time.sleep(1.0)
        assert reasons([first, *results]) == [0, 1, 2, 3]


def test_tasks_are_taken_only_as_needed():
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield ("echo", number)

    with pool(2) as readers:
        results = readers.map(tasks(), window=3)
        assert taken == []
        for number in range(10):
            assert next(results)[1] == number
            assert len(taken) <= number + 1 + 3
        results.close()
        # What was under way when the map was abandoned does not reach the next one.
        assert reasons(readers.map([("echo", "fresh")])) == ["fresh"]


def test_an_error_of_the_task_source_is_passed_on():
    def tasks():
        yield ("echo", 1)
        raise RuntimeError("the source broke")

    with pool(1) as readers:
        with pytest.raises(RuntimeError, match="the source broke"):
            list(readers.map(tasks()))
        assert reasons(readers.map([("echo", 2)])) == [2]


def test_workers_load_no_neural_network():
    with pool(1) as readers:
        assert reasons(readers.map([("modules", ["torch", "open_clip"])])) == [[]]


def test_closing_leaves_no_process_behind():
    before = psutil.Process().children()
    with pool(2) as readers:
        pids = [pid for _, pid in readers.map([("pid", n) for n in range(8)])]
        results = readers.map([("sleep", 60), ("echo", 1)])
        # Not started before it is asked for; one answer is enough to have it under way.
        assert len(set(pids)) >= 1
        results.close()
    assert psutil.Process().children() == before


def test_a_function_that_cannot_be_loaded_is_said_at_once(monkeypatch):
    monkeypatch.setattr(act, "__module__", "no_such_module_anywhere", raising=True)
    # Pickled by name before the name is checked in the other process.
    module = type(sys)("no_such_module_anywhere")
    module.act = act
    monkeypatch.setitem(sys.modules, "no_such_module_anywhere", module)
    with pool(1) as readers, pytest.raises(PrecedentError, match="could not start"):
        list(readers.map([("echo", 1)]))


def test_interrupts_are_left_to_the_parent():
    with pool(1) as readers:
        [(_, pid)] = readers.map([("pid", 0)])
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert reasons(readers.map([("pid", 0)])) == [pid]


@pytest.mark.slow
@pytest.mark.parametrize("task", [("pid", 0), ("sleep", 60)])
def test_workers_follow_a_parent_that_was_killed(task):
    script = textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = {[str(ROOT), str(Path(__file__).parent)]!r}
        from indexer.pipeline.reader_pool import ReaderPool
        from test_reader_pool import act
        pool = ReaderPool(act, processes=2, seconds=60, memory_bytes=1024**3)
        print(*(pid for _, pid in pool.map([("pid", n) for n in range(8)])), flush=True)
        results = pool.map([{task!r}] * 2)
        next(results)
        time.sleep(60)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    with parent.stdout:
        parent.stdout.readline()
        time.sleep(0.5)
        workers = psutil.Process(parent.pid).children()
        assert len(workers) == 2
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []

"""What all tests share: reproducible examples, a quick disk, and as many workers as cores."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import engine  # noqa: F401 - before torch, for what it settles

# What is imported and collected stays until the end: looking through it for what is no longer used
# takes as long as the imports, and all that collected again after some tests.
gc.disable()

pytest_plugins = ["services.needed", "services.postgres", "services.readers"]

# Examples are drawn from the test's name, so that a failure comes back; other work on the
# machine must not fail a test, so there is no deadline for one example.
hypothesis.settings.register_profile("precedent", derandomize=True, deadline=None)
hypothesis.settings.load_profile("precedent")

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 * 1024**3  # an empty store reserves about 140 MB


def _is_quick() -> bool:
    """Whether there is a disk in memory with room for the tests, from which programs can run."""
    if not _MEMORY.is_dir() or not os.access(_MEMORY, os.W_OK):
        return False
    runs = not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
    return runs and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES


# Stores, ledgers and models are synced to the disk file by file, which most tests wait for more
# than for anything else. Whoever sets TMPDIR chooses the disk. Workers inherit it.
if "TMPDIR" not in os.environ and _is_quick():
    os.environ["TMPDIR"] = str(_MEMORY)
    tempfile.tempdir = None

# A shell that starts the tests in the background leaves Ctrl-C ignored. What they start inherits
# that, and some of it is interrupted to see what it keeps.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Threads that spin while they wait for work take it from other tests on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workers share the cores; threads of theirs would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each core that this process may use; each takes about a GB of memory."""
    return min(len(os.sched_getaffinity(0)), 8)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """From here on, what tests leave behind is looked for as ever, among what they made alone."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # or libraries would complain in the end of what they find left


_LONGEST = (
    *("test_processors", "test_kill", "test_demo", "test_workers", "test_beside", "test_cli"),
    *("test_reencode", "test_disk_full", "test_indexing_bench", "test_cells", "test_bad_uploads"),
)
"""Modules whose slow tests take minutes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--no-loadscope-reorder``, long modules come first, so that no worker begins one when
    the others are about to end. It would otherwise be those with the most tests."""
    if not config.getoption("loadscopereorder", True):
        rank = {name: number for number, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="module")
def store_root() -> Iterator[Path]:
    """An empty folder of the module's own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

"""What all tests share: reproducible examples, and a place where stores are quick to make."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ["services.needed", "services.postgres"]

# Examples are drawn from the test's name, so that a failure comes back; other work on the
# machine must not fail a test, so there is no deadline for one example.
hypothesis.settings.register_profile("precedent", derandomize=True, deadline=None)
hypothesis.settings.load_profile("precedent")

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 * 1024**3  # an empty store reserves about 140 MB


@pytest.fixture(scope="module")
def store_root() -> Iterator[Path]:
    """An empty folder, in memory where there is room: making a store syncs hundreds of files."""
    in_memory = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES
    with tempfile.TemporaryDirectory(dir=_MEMORY if in_memory else None) as folder:
        yield Path(folder)

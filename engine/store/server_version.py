"""The versions of the Qdrant server that will do, and the one that all this was run on."""

import re

__all__ = ["OLDEST", "RUN_ON", "minor_of"]

RUN_ON = "1.18.3"
"""The contract (tests/contract) and a cluster of three nodes were run on it. docker/qdrant.yaml
names it too, and tests/contract/behaviours.py says where it differs from what one would guess."""
OLDEST = (1, 16)
"""Earlier versions keep no metadata of collections."""


def minor_of(version: str) -> tuple[int, int] | None:
    """The major and the minor number of a version; None = it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return None if found is None else (int(found[1]), int(found[2]))

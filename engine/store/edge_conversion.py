"""Embedded stores of format 1, a payload field for each value: converted when they are opened."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qdrant

from engine.records import Point
from engine.store.arrangement import VECTOR
from engine.store.edge_exchange import beside, exchange
from engine.store.edge_layout import scrolled, wrapped
from engine.store.payload import from_payload

__all__ = ["convert"]

logger = logging.getLogger(__name__)

_CONVERTED = "converted"


def convert(directory: Path, fill: Callable[[Path, Iterator[list[Point]]], None]) -> None:
    """Replaces a store of format 1 by one with the same points. It may be interrupted.

    Args:
        fill: makes a store in a folder, of these points.
    """
    logger.warning("the index in %s is of an earlier version and is converted", directory)
    made = beside(directory, _CONVERTED)
    shutil.rmtree(made, ignore_errors=True)
    old = wrapped(qdrant.EdgeShard.load, str(directory))
    fill(made, ([_of_format_1(record) for record in records] for records in scrolled(old)))
    wrapped(old.close)
    exchange(directory, made)


def _of_format_1(record: Any) -> Point:
    # Rounding to float16 changed the length slightly.
    z = np.asarray(record.vector[VECTOR], np.float32)
    z /= np.linalg.norm(z)
    return from_payload(str(record.id), record.payload, z=z)

"""What routes are given: the archive, the readers of uploads, the parsed question."""

import queue
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, BinaryIO
from uuid import UUID

import numpy as np
from fastapi import Depends, Form, HTTPException, Query, Request, UploadFile
from numpy.typing import NDArray

from api.portal.pages import Pages
from engine import search
from engine.errors import ImageNotFound, ImageRefused, RefusalReason
from indexer.archive import Archive, QueryReader

__all__ = [
    "ArchiveDep",
    "Asked",
    "AskedByForm",
    "ImageId",
    "PagesDep",
    "Readers",
    "ReadersDep",
    "Where",
    "point_id",
]

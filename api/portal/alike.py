"""Where a query and a hit look alike, as the comparing page shows it: two pictures with marks."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from PIL import Image

from api.http.deps import Readers
from api.portal import words
from api.portal.answers import whole_of
from api.portal.catalogues import gettext
from api.portal.kept import KeptQueries, owner_of
from engine.errors import ImageRefused, QueryExpired, SourceError
from engine.search.alike import CELLS, AlikeMap
from indexer.archive import TenantArchive
from indexer.imaging.region import Region

__all__ = ["Alike", "AlikeMaps", "alike", "with_marks"]

_MOST = 256
_BUSY_SECONDS = 15.0
_CELL_SIDE = 48
"""Pixels of a cell in the pictures."""
_LINE = 3
_TINT = np.array([255, 160, 0], dtype=np.float32)
_MOST_TINT = 0.5
_WHOLE = Region(0.0, 0.0, 1.0, 1.0)

Maps = tuple[AlikeMap, AlikeMap]


@dataclass(frozen=True, slots=True)
class Alike:
    """What the page shows. pictures: ``data:`` URLs, of the left image and of the right one; empty
    = there are none, and ``missing`` says why. similarity: of the two, in [-1, 1]. unmarked: in one
    of them nothing is marked."""

    pictures: tuple[str | None, ...] = ()
    similarity: float = 0.0
    unmarked: bool = False
    missing: str = ""


class AlikeMaps:
    """Maps that were computed, numbers without pictures; one is computed at a time.

    They are known by tenant, model and both canvases, so that what is asked for again is the same,
    and who has not both pictures gets none.

    Args:
        most: how many are kept; the one that was used longest ago goes first.
        seconds: how long a request waits for others'.
    """

    def __init__(self, most: int = _MOST, seconds: float = _BUSY_SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._computing = threading.Lock()
        self._kept: OrderedDict[bytes, Maps] = OrderedDict()

    def of(self, archive: TenantArchive, canvases: Sequence[NDArray[np.uint8]]) -> Maps:
        """The maps of two canvases.

        Raises:
            HTTPException: 503, others' maps took longer than a request waits.
        """
        parts = [archive.tenant.encode(), archive.manifest.fingerprint.encode()]
        parts += [hashlib.sha256(one.tobytes()).digest() for one in canvases]
        name = hashlib.sha256(b"\0".join(parts)).digest()
        if (found := self._known(name)) is not None:
            return found
        with self._alone():
            # Somebody else may have asked for the same one meanwhile.
            if (found := self._known(name)) is None:
                found = (
                    archive.engine.alike_map(*canvases),
                    archive.engine.alike_map(*reversed(canvases)),
                )
                with self._lock:
                    self._kept[name] = found
                    while len(self._kept) > self._most:
                        self._kept.popitem(last=False)
            return found

    def _known(self, name: bytes) -> Maps | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._computing.acquire(timeout=self._seconds):
            raise HTTPException(
                503, "too many pictures are being compared; try again shortly", {"Retry-After": "5"}
            )
        try:
            yield
        finally:
            self._computing.release()


def alike(
    request: Request, archive: TenantArchive, readers: Readers, token: str, ids: Sequence[str]
) -> Alike:
    """What the page shows of two images.

    Args:
        token: of an upload, the left image; empty = the left one is indexed too.
        ids: of one indexed image with a token, of two without.

    Raises:
        ImageNotFound: one of them is not indexed. HTTPException: 503, the service is busy.
    """
    try:
        canvases = [_canvas_of_upload(request, archive, token)] if token else []
    except QueryExpired:
        return Alike(
            missing=gettext(
                "The map needs the picture of your upload, which is not kept any more. Search with "
                "the file again, and open this page from there."
            )
        )
    try:
        originals = [archive.original(one) for one in ids]
        canvases += [readers.read_region(one, _WHOLE).canvas for one in originals]
    except (SourceError, ImageRefused):
        return Alike(
            missing=gettext(
                "The map needs the originals of the images, and one cannot be read: it is gone, "
                "another file is in its place, or it is too small."
            )
        )
    maps: AlikeMaps = request.app.state.alike_maps
    found = maps.of(archive, canvases)
    pairs = zip(canvases, found, strict=True)
    return Alike(
        tuple(words.picture_inside(with_marks(*one)) for one in pairs),
        found[0].similarity,
        not all(one.marked.any() for one in found),
    )


def with_marks(canvas: NDArray[np.uint8], found: AlikeMap) -> NDArray[np.uint8]:
    """The canvas, enlarged, tinted where its weights are high, with a line around what is marked.

    Args:
        canvas: uint8 (S, S) or (S, S, 3).

    Returns:
        uint8 (48 · CELLS, 48 · CELLS, 3).
    """
    side = CELLS * _CELL_SIDE
    large = Image.fromarray(canvas).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    marked = found.marked
    weights = np.where(marked, found.weights, 0)
    shares = weights / max(float(weights.max()), 1e-9) * _MOST_TINT
    tint = np.kron(shares, np.ones((_CELL_SIDE, _CELL_SIDE)))[..., None]
    pixels = np.asarray(large, dtype=np.float32) * (1 - tint) + _TINT * tint
    inside = np.kron(marked, np.ones((_CELL_SIDE, _CELL_SIDE), dtype=bool))
    core = np.pad(inside, _LINE)
    for axis in (0, 1):
        core = core & np.roll(core, _LINE, axis) & np.roll(core, -_LINE, axis)
    # Seen on a bright picture, and by who does not tell the colours apart.
    pixels[inside & ~core[_LINE:-_LINE, _LINE:-_LINE]] = _TINT
    shown: NDArray[np.uint8] = np.rint(pixels).astype(np.uint8)
    return shown


def _canvas_of_upload(request: Request, archive: TenantArchive, token: str) -> NDArray[np.uint8]:
    """uint8 (S, S) or (S, S, 3). Raises QueryExpired: its picture is not kept any more."""
    queries: KeptQueries = request.app.state.kept_queries
    owner, model = owner_of(request.state.caller), archive.manifest.fingerprint
    whole = whole_of(queries.of(token, owner, model))
    return archive.manifest.preprocess.canvas(whole.turn.applied(whole.pixels))

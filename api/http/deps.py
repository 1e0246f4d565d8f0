"""Dependencies of the routes: the archive, the readers of uploads, the parsed search request."""

import queue
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path, Query, Request, UploadFile

from engine.errors import ImageRefused, RefusalReason
from engine.search.query import GROUPS, MAX_K
from indexer.archive import Archive, Original, QueryImage, QueryReader, TenantArchive
from indexer.imaging.region import Region

__all__ = [
    "ABOUT_WHERE",
    "EXAMPLE_ID",
    "EXAMPLE_IMAGE",
    "EXAMPLE_STUDY",
    "GROUP_VALUES",
    "K_BOUNDS",
    "ArchiveDep",
    "Asked",
    "PointId",
    "Readers",
    "ReadersDep",
    "Where",
    "served",
]

_BUSY_SECONDS = 15.0


class Readers:
    """A pool of reading processes for uploads. Close it, or use it as a context manager.

    Args:
        archive: its settings limit what is read.
        count: number of processes; each reads one upload at a time, further uploads wait.
        max_bytes: largest size of an upload.
    """

    def __init__(self, archive: Archive, count: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._idle: queue.LifoQueue[QueryReader] = queue.LifoQueue()
        with ExitStack() as opened:
            for _ in range(count):
                self._idle.put(opened.enter_context(archive.query_reader()))
            self._opened = opened.pop_all()

    def read(self, upload: UploadFile, region: Region | None = None) -> QueryImage:
        """The upload as a query image: canvas, record and point id.

        region: what of the picture; None = all of it.

        Raises:
            ImageRefused: it is too large, or cannot be read as an image; the region is too small.
            HTTPException: 503, no process became free within 15 seconds.
        """
        (result,) = self.read_all([upload], region)
        if isinstance(result, ImageRefused):
            raise result
        return result

    def read_region(self, original: Original, region: Region) -> QueryImage:
        """A region of an indexed image, cut from its original.

        Raises:
            HTTPException: 503, no process became free within 15 seconds. Else as
                :meth:`indexer.archive.QueryReader.read_region`.
        """
        with self._borrowed() as reader:
            return reader.read_region(original, region)

    def read_all(
        self,
        uploads: Sequence[UploadFile],
        region: Region | None = None,
        whole_side: int | None = None,
    ) -> list[QueryImage | ImageRefused]:
        """Each upload as a query image, or why it is none, in order.

        They are read by all processes that nobody else uses, at least by one. region, whole_side:
        as of :meth:`indexer.archive.QueryReader.read`.

        Raises:
            HTTPException: 503, no process became free within 15 seconds.
        """
        found: list[QueryImage | ImageRefused] = [*map(self._too_large, uploads)]  # type: ignore[list-item]
        places = deque(place for place, refused in enumerate(found) if refused is None)

        def read_on(reader: QueryReader) -> None:
            with suppress(IndexError):
                while True:
                    place = places.popleft()
                    # Loaded into memory only now: requests that wait for a process take none.
                    (found[place],) = reader.read([uploads[place].file.read()], region, whole_side)

        with ExitStack() as borrowed:
            if places:
                readers = [borrowed.enter_context(self._borrowed())]
                with suppress(queue.Empty):
                    while len(readers) < len(places):
                        readers.append(borrowed.enter_context(self._borrowed(wait=False)))
                with ThreadPoolExecutor(len(readers)) as threads:
                    list(threads.map(read_on, readers))
        return found

    def _too_large(self, upload: UploadFile) -> ImageRefused | None:
        if upload.size is None or upload.size <= self._max_bytes:
            return None
        return ImageRefused(
            RefusalReason.TOO_LARGE,
            f"the file has {upload.size} bytes, the service takes {self._max_bytes}",
        )

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _borrowed(self, *, wait: bool = True) -> Iterator[QueryReader]:
        """A reader; it is given back at the end. wait: False = raises queue.Empty if none is free
        now."""
        try:
            reader = self._idle.get(block=wait, timeout=_BUSY_SECONDS)
        except queue.Empty:
            if not wait:
                raise
            raise HTTPException(
                503, "too many images are being read; try again shortly", {"Retry-After": "5"}
            ) from None
        try:
            yield reader
        finally:
            self._idle.put(reader)


@dataclass(frozen=True, slots=True)
class Asked:
    """A search request, as yet unchecked: an upload, or what names an indexed image, and options.

    image_id, sop (and frame), series, study: see :func:`engine.search.representative`.
    text: words to search by, in place of an image.
    k: None = the setting ``search.k``. page: cursor from an earlier answer; None = the first page.
    region: what of its picture is searched for; None = all of it.
    The other options are as in :class:`engine.search.query.Query`.
    """

    upload: UploadFile | None = None
    image_id: str | None = None
    sop: str | None = None
    frame: int | None = None
    series: str | None = None
    study: str | None = None
    text: str | None = None
    region: Region | None = None
    k: int | None = None
    where: tuple[str, ...] = field(default=())
    order: str = "content"
    exact: bool = False
    radius: int | None = None
    group_by: str | None = None
    exclude: str | None = None
    page: str | None = None
    facets: bool = True


_NOBODY = ""
"""The tenant of callers without a key, where keys are in use: no image is of it."""


@contextmanager
def served(request: Request) -> Iterator[tuple[TenantArchive, Readers]]:
    """One archive for the whole request, even if another index comes into force meanwhile; of it
    what the caller's tenant may see. There is no other way to the archive from here.

    Raises:
        StoreNotFound: there is no index yet.
    """
    caller = request.state.caller
    with request.state.serving.request() as (archive, readers):
        yield TenantArchive(archive, _NOBODY if caller is None else caller.tenant), readers


# These are coroutines though they await nothing: FastAPI sends each function that is none through
# the thread pool, which takes longer than what these do.
async def _serving(request: Request) -> AsyncIterator[tuple[TenantArchive, Readers]]:
    with served(request) as found:
        yield found


_Serving = Annotated[tuple[TenantArchive, Readers], Depends(_serving)]


async def _archive(serving: _Serving) -> TenantArchive:
    return serving[0]


async def _readers(serving: _Serving) -> Readers:
    return serving[1]


ArchiveDep = Annotated[TenantArchive, Depends(_archive)]
ReadersDep = Annotated[Readers, Depends(_readers)]

# These bounds only document the values in the OpenAPI document. engine.search.query checks them,
# so that the service and the command line give the same error message.
K_BOUNDS = {"minimum": 1, "maximum": MAX_K}
GROUP_VALUES = {"enum": [*GROUPS, "none"]}
ABOUT_WHERE = (
    "Filter, repeatable: `modality=CT`, `modality!=CT`, `study_year=2015..2020`. Several of "
    "one field with `=` mean any of its values."
)
EXAMPLE_ID = "9d4f5c3e-6a3b-5b0e-8f52-0c7e1f0a6d11"
EXAMPLE_STUDY = "1.2.826.0.1.3680043.8.498.1"
EXAMPLE_IMAGE: dict[str, Any] = {
    "id": EXAMPLE_ID,
    "study": EXAMPLE_STUDY,
    "series": "1.2.826.0.1.3680043.8.498.1.1",
    "sop": "1.2.826.0.1.3680043.8.498.1.1.7",
    "frame": 0,
    "modality": "CT",
    "body_part": "CHEST",
    "view": None,
    "laterality": None,
    "manufacturer": "ACME",
    "sex": "F",
    "age_band": "60-69",
    "study_year": 2019,
    "labels": ["nodule"],
    "source": "folder",
    "burned_in": None,
}
"""An image, as answers describe it in examples."""

PointId = Annotated[
    str, Path(alias="id", description="Id of an indexed image.", examples=[EXAMPLE_ID])
]
Where = Annotated[list[str], Query(description=ABOUT_WHERE, examples=[["modality=CT"]])]

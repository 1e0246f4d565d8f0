"""Retrieves instances by WADO-RS, as the server stores them (PS3.18, section 10.4).

Several requests run in parallel; results come in order. Content is not parsed here: it is not
trusted, and parsed only in the reading processes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from threading import Event
from typing import TypeVar

import requests

from engine.errors import ImageRefused, RefusalReason
from engine.settings import DicomWebSettings, ImageLimits
from indexer.sources.dicomweb.address import Address
from indexer.sources.dicomweb.failure import Failed
from indexer.sources.dicomweb.multipart import Part, boundary_of, media_type, split
from indexer.sources.dicomweb.server import WebServer
from indexer.sources.dicomweb.spool import Spool, SpoolFull
from indexer.sources.dicomweb.verdict import ACCEPT, Verdict, gone, unreadable

__all__ = ["Retrieval"]

_T = TypeVar("_T")
_R = TypeVar("_R")
_Content = bytes | ImageRefused

_DICOM = {"application/dicom", ""}
_HELD = 256 * 1024**2
"""Bytes that may wait for the readers before another instance is asked for."""
_SPOOL = 8 * 1024**3
"""Most bytes of one series on disk; instances beyond are retrieved one by one."""
_RUN = 10_000
"""Most instances of a series that are retrieved together."""
_HEADS = 64 * 1024
"""Most bytes that an answer may have besides its instance."""


class Retrieval:
    """Retrieves instances from one server.

    At most ``max_connections`` of the settings are received at once. Received instances wait in
    memory, and no more are requested while those have 256 MiB. If whole series are retrieved,
    they wait in unnamed files in the system's temporary folder.

    Args:
        limits: only ``max_file_bytes`` applies here.
        spool_bytes: the most bytes of one series on disk.
    """

    def __init__(
        self,
        server: WebServer,
        settings: DicomWebSettings,
        limits: ImageLimits,
        *,
        spool_bytes: int = _SPOOL,
    ) -> None:
        self._server = server
        self._connections = settings.max_connections
        self._whole_series = settings.retrieve == "series"
        self._largest = limits.max_file_bytes
        self._spool_bytes = spool_bytes
        self._verdict = Verdict(server)

    def images(self, locators: Iterable[str]) -> Generator[_Content]:
        """The content of each instance, or a refusal, in order; some are retrieved ahead.

        Raises:
            SourceError: the server cannot be reached, or refuses access.
        """
        stopped = Event()
        pool = ThreadPoolExecutor(self._connections, "dicomweb")
        try:
            if self._whole_series:
                yield from self._by_series(pool, locators, stopped)
            else:
                yield from _in_order(
                    pool, lambda one: self._single(one, stopped), locators, 2 * self._connections
                )
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)

    def _by_series(
        self, pool: ThreadPoolExecutor, locators: Iterable[str], stopped: Event
    ) -> Iterator[_Content]:
        spools: set[Spool] = set()

        def fetched(run: list[str]) -> tuple[list[str], Spool]:
            spool = Spool(self._spool_bytes)
            spools.add(spool)
            self._fetch_run(run, spool, stopped)
            return run, spool

        try:
            for run, spool in _in_order(pool, fetched, _runs(locators), self._connections):
                for locator in run:
                    content = spool.content(locator)
                    yield self._single(locator, stopped) if content is None else content
                spool.close()
                spools.discard(spool)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            for spool in spools:
                spool.close()

    def _single(self, locator: str, stopped: Event) -> _Content:
        """One instance, by a request of its own, or a refusal."""
        if Address.of(locator, self._server.base) is None:
            return unreadable(
                f"{locator} is nothing that {self._server} can be asked for; it was listed without "
                "a valid UID, or when the source had another address"
            )
        try:
            content = self._server.ask(lambda: self._received(locator, stopped), stopped=stopped)
        except Failed as failed:
            # After a stop, do not ask the server whether it or the instance is at fault.
            return unreadable(failed.words) if stopped.is_set() else self._verdict.on(failed)
        if isinstance(content, bytes):
            self._verdict.delivered(locator)
        return content

    def _received(self, locator: str, stopped: Event) -> _Content:
        """The instance in the answer to a single request, or a refusal.

        Raises:
            Failed: there is no answer, or it broke off.
        """
        with self._server.get(locator, ACCEPT) as response:
            if _announced(response) > self._largest + _HEADS:
                return self._too_large()
            parts = _parts(response, self._server.body(response, stopped))
            if parts is None:
                return unreadable("the server sends something else than application/dicom")
            read = BytesIO()
            begun = False
            for piece in parts:
                if isinstance(piece, bytes):
                    read.write(piece)
                    if read.tell() > self._largest:
                        return self._too_large()
                elif begun:
                    break
                elif piece.media_type not in _DICOM:
                    return unreadable("the server sends something else than application/dicom")
                else:
                    begun = True
            _finish(response, self._server.body(response, stopped))
            # A BytesIO hands out what it holds without a copy.
            return read.getvalue() or gone()

    def _fetch_run(self, run: list[str], spool: Spool, stopped: Event) -> None:
        """Retrieves instances of one series by one request, missing ones by single requests."""
        addresses = [Address.of(locator, self._server.base) for locator in run]
        wanted = {
            address.sop: locator
            for address, locator in zip(addresses, run, strict=True)
            if address is not None
        }
        try:
            first = next(filter(None, addresses), None)
            if first is not None and len(wanted) > 1:
                url = first.series_url(self._server.base)
                self._server.ask(
                    lambda: self._receive_series(url, wanted, spool, stopped), stopped=stopped
                )
        except Failed:
            # Ignored: the single requests below fail in the same way, or succeed.
            pass
        except SpoolFull:
            return
        try:
            for locator in run:
                if stopped.is_set():
                    return
                if locator not in spool:
                    content = self._single(locator, stopped)
                    if isinstance(content, bytes):
                        spool.begin()
                        spool.write(content)
                        spool.keep(locator)
                    else:
                        spool.refuse(locator, content)
        except SpoolFull:
            return

    def _receive_series(
        self, url: str, wanted: dict[str, str], spool: Spool, stopped: Event
    ) -> None:
        """Requests a series and puts the wanted instances into the spool, until it has them all.

        Args:
            wanted: locators by SOP Instance UID.

        Raises:
            Failed: there is no answer, or it broke off. Instances received before are kept.
            SpoolFull: the spool has no room for more.
        """

        def keep() -> bool:
            """Ends a part; returns whether any wanted instance is still missing."""
            locator = wanted.get(spool.started() or "")
            if locator is not None and locator not in spool:
                spool.keep(locator)
                self._verdict.delivered(locator)
            return not all(one in spool for one in wanted.values())

        spool.begin()
        with self._server.get(url, ACCEPT) as response:
            parts = _parts(response, self._server.body(response, stopped))
            for piece in () if parts is None else parts:
                if isinstance(piece, Part):
                    if not keep():
                        return
                    spool.begin()
                elif spool.written + len(piece) > self._largest:
                    # Stop: the next part starts only after the rest of this one.
                    locator = wanted.get(spool.started() or "")
                    if locator is not None:
                        spool.refuse(locator, self._too_large())
                    return
                else:
                    spool.write(piece)
            keep()

    def _too_large(self) -> ImageRefused:
        return ImageRefused(
            RefusalReason.TOO_LARGE,
            f"the server sends more than {self._largest} bytes; raise limits.max_file_bytes to "
            "read it",
        )


def _parts(response: requests.Response, chunks: Iterator[bytes]) -> Iterator[Part | bytes] | None:
    """The parts of an answer; None when it is neither multipart nor an instance."""
    header = response.headers.get("Content-Type", "")
    kind, boundary = media_type(header), boundary_of(header)
    if kind == "application/dicom":
        return chunks
    if kind == "multipart/related" and boundary is not None:
        return split(chunks, boundary)
    # 204 No Content: no parts.
    return iter(()) if response.status_code == 204 else None


def _finish(response: requests.Response, chunks: Iterator[bytes]) -> None:
    """Reads what follows the last boundary, so that the connection can be used again."""
    if {"Content-Length", "Transfer-Encoding"} & set(response.headers):
        with suppress(Failed):
            next(chunks, None)


def _announced(response: requests.Response) -> int:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0


def _runs(locators: Iterable[str]) -> Iterator[list[str]]:
    """Groups consecutive locators of the same series."""
    run: list[str] = []
    for locator in locators:
        series = locator.rpartition("/instances/")[0]
        if run and (series != run[-1].rpartition("/instances/")[0] or len(run) >= _RUN):
            yield run
            run = []
        run.append(locator)
    if run:
        yield run


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[_T], _R], items: Iterable[_T], ahead: int
) -> Iterator[_R]:
    """The results of ``work`` in the order of the items; up to ``ahead`` of them run or wait."""
    coming = iter(items)
    waiting: deque[Future[_R]] = deque()
    while True:
        while not waiting or (len(waiting) < ahead and _held(waiting) < _HELD):
            item = next(coming, None)
            if item is None:
                break
            waiting.append(pool.submit(work, item))
        if not waiting:
            return
        yield waiting.popleft().result()


def _held(waiting: Iterable[Future[_R]]) -> int:
    """Bytes of the finished results that wait."""
    made = (one.result() for one in waiting if one.done() and one.exception() is None)
    return sum(len(one) for one in made if isinstance(one, bytes))

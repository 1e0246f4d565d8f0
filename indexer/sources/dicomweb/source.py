"""A DICOMweb server as a source: QIDO-RS lists the instances, WADO-RS delivers them.

Studies are searched page by page, then the instances of as many studies as a page holds, which the
server's counts check (``together``). Where they do not agree, the series of a study are searched,
then the instances of each series (PS3.18, section 10.6). Memory grows only with the UIDs that one
search lists: about 150 bytes for each study, and a search with dates lists only one month of them.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from threading import Event
from typing import Any

from engine.errors import ImageRefused, QueryError, SourceError
from engine.settings import DicomWebSettings, ImageLimits
from indexer.sources.base import Discovered
from indexer.sources.dicomweb.address import is_uid
from indexer.sources.dicomweb.entries import Entry, count_of, name_of, value_of
from indexer.sources.dicomweb.failure import Failed
from indexer.sources.dicomweb.server import Wait, WebServer
from indexer.sources.dicomweb.together import COUNT, ListedStudy, Together, batches
from indexer.sources.dicomweb.wado import Retrieval

__all__ = ["DicomWebSource", "study_dates"]

_log = logging.getLogger(__name__)

_STUDY_DATE, _MODALITY = "00080020", "00080060"
_GONE = {404, 410}
_MONTHS_FROM = date(2000, 1, 1)
"""The studies before this date are few enough for one search."""
_EARLIEST = "18000101"

_Fits = Callable[[Entry], bool]


@dataclass(frozen=True, slots=True)
class _Level:
    """A search of studies, series or instances. path: of what it lists, below the server's address.
    tag, keyword: of the UID that it lists."""

    search: Callable[..., list[dict[str, Any]]]
    path: str
    tag: str
    keyword: str


class DicomWebSource:
    """The instances of a DICOMweb server. The constructor sends nothing.

    Entries that the server lists without a valid UID cannot be retrieved, and what stands in
    place of the UID is never put into a URL. Such an entry is discovered under a locator that
    ends in "invalid-" and a digest, so that it is refused later and appears among the refused.

    By the standard an instance never changes: other content has another SOP Instance UID. So all
    instances have the same stamp. Their size is 0, because it is not known before retrieval.

    Args:
        name: of the source in the settings.
        since, until: first and last Study Date. If either is given, the search goes month by
            month, and by the standard studies without a date are not found.
        modality: only series of this modality, such as "CT".
        study: only the study with this Study Instance UID.
        wait: makes the pauses. clock: returns a monotonic time in seconds. today: returns the
            last Study Date to search if ``until`` is not given.

    Raises:
        QueryError: ``since`` is after ``until``, or ``modality`` or ``study`` is invalid.
        SettingsError: the address, the credentials or the certificates cannot be used.
    """

    def __init__(
        self,
        name: str,
        settings: DicomWebSettings,
        limits: ImageLimits,
        *,
        since: date | None = None,
        until: date | None = None,
        modality: str | None = None,
        study: str | None = None,
        wait: Wait = Event.wait,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = date.today,
    ) -> None:
        if since is not None and until is not None and since > until:
            raise QueryError(f"since {since} is after until {until}; give the earlier date first")
        if modality is not None and re.fullmatch(r"[A-Z0-9_]{1,16}", modality) is None:
            raise QueryError(f"modality {modality!r} is none; give one as in CT")
        if study is not None and not is_uid(study):
            raise QueryError(f"study {study!r} is no UID; give its Study Instance UID")
        self.name = name
        self._server = WebServer(name, settings, wait=wait, clock=clock)
        self._retrieval = Retrieval(self._server, settings, limits)
        self._page = settings.page
        self._since, self._until, self._today = since, until, today
        self._modality, self._study = modality, study

    def instances(self) -> Iterator[Discovered]:
        """All instances that the server lists, series by series.

        Raises:
            SourceError: the server cannot be reached, refuses access, or answers invalidly.
        """
        together = Together(self._server, self._page, self._modality)
        of_server = _Level(together.search_for_studies, "studies", "0020000D", "StudyInstanceUID")
        invalid = 0
        for batch in batches(self._studies(of_server), together, self._page):
            found = together.instances(batch)
            for study in batch:
                pairs = found.get(study.uid)
                if pairs is None:
                    locators = self._searched(of_server, study.uid)
                else:
                    locators = (
                        f"{study.uid}/series/{series}/instances/{sop}" for series, sop in pairs
                    )
                for locator in locators:
                    invalid += not is_uid(locator.rpartition("/")[2])
                    yield Discovered(f"{self._server.base}/studies/{locator}", 0, 0)
        if invalid:
            _log.warning("%s lists %d entries without a valid UID", self._server, invalid)

    def images(self, locators: Iterable[str]) -> Generator[bytes | ImageRefused]:
        """The content of each instance as the server stores it, or a refusal, in order.

        Raises:
            SourceError: the server cannot be reached, or refuses access.
        """
        return self._retrieval.images(locators)

    def _searched(self, of_server: _Level, study: str) -> Iterator[str]:
        """The locators of a study, from its UID on, by a search for its series and one of each."""
        client = self._server.client
        if not is_uid(study):
            yield study
            return
        of_study = _Level(
            partial(client.search_for_series, study),
            f"studies/{study}/series",
            "0020000E",
            "SeriesInstanceUID",
        )
        modality = {} if self._modality is None else {"Modality": self._modality}
        for series, _ in self._listed(
            of_study, modality, self._is_of_modality, within=(of_server, study)
        ):
            if not is_uid(series):
                yield f"{study}/series/{series}"
                continue
            of_series = _Level(
                partial(client.search_for_instances, study, series),
                f"{of_study.path}/{series}/instances",
                "00080018",
                "SOPInstanceUID",
            )
            for sop, _ in self._listed(of_series, {}, within=(of_study, series)):
                yield f"{study}/series/{series}/instances/{sop}"

    def _studies(self, level: _Level) -> Iterator[ListedStudy]:
        for uid, entry in self._study_entries(level):
            yield ListedStudy(uid, count_of(entry, COUNT) if is_uid(uid) else 0)

    def _study_entries(self, level: _Level) -> Iterator[tuple[str, Entry]]:
        filters = {}
        if self._modality is not None:
            filters["ModalitiesInStudy"] = self._modality
        if self._study is not None:
            filters[level.keyword] = self._study
        if self._since is None and self._until is None:
            yield from self._listed(level, filters, self._is_study)
            return
        unsaid: set[str] = set()
        for first, last in study_dates(self._since, self._until, self._today()):

            def fits(entry: Entry, first: str = first, last: str = last) -> bool:
                """Whether a study is in range: some servers ignore date ranges or omit dates."""
                if not self._is_study(entry):
                    return False
                if _STUDY_DATE in entry:
                    day = value_of(entry, _STUDY_DATE)
                    return re.fullmatch(r"[0-9]{8}", day) is not None and first <= day <= last
                # Without a date it would be listed again for each month.
                name = name_of(entry, level.tag)
                known = name in unsaid
                unsaid.add(name)
                return not known

            yield from self._listed(level, {**filters, "StudyDate": f"{first}-{last}"}, fits)

    def _listed(
        self,
        level: _Level,
        filters: Mapping[str, str],
        fits: _Fits = lambda _: True,
        *,
        within: tuple[_Level, str] | None = None,
    ) -> Iterator[tuple[str, Entry]]:
        """The UIDs that a search lists, each once; for an invalid one "invalid-" and a digest. With
        each its entry.

        Servers may return shorter pages than asked for, so only an empty page ends the list.

        Args:
            filters: of the search.
            fits: whether to yield an entry, for servers that ignore filters.
            within: the level above, and the UID of the study or series that is listed.

        Raises:
            SourceError: there is no valid answer, or the same page again.
        """
        offset, known = 0, set[str]()
        while True:
            try:
                page = self._server.search(
                    level.search, limit=self._page, offset=offset, search_filters=dict(filters)
                )
            except Failed as failed:
                if failed.status in _GONE and (offset or self._removed(within)):
                    return
                raise self._server.error(failed) from None
            if not page:
                return
            names = self._names(page, level, is_first=within is None and not known)
            fresh = {
                name: entry for name, entry in zip(names, page, strict=True) if name not in known
            }
            if not fresh:
                # The server ignores offset or limit, and has returned the whole list already.
                if len(page) != self._page:
                    return
                raise SourceError(
                    f"{self._server} answers with the same {self._page} entries again when asked "
                    f"for the next ones; set {self._server.setting('page')} above the number of "
                    "entries that it lists at once, or search fewer dates"
                )
            known.update(fresh)
            yield from ((name, entry) for name, entry in fresh.items() if fits(entry))
            offset += len(page)

    def _names(self, page: list[dict[str, Any]], level: _Level, *, is_first: bool) -> list[str]:
        """The name of each entry. Entries without UID, that have nothing else to be told apart by,
        are numbered.

        Raises:
            SourceError: no study has a UID, so that it is no search for studies that answers.
        """
        if is_first and not any(level.tag in entry for entry in page):
            raise SourceError(
                f"{self._server} lists {level.path.rpartition('/')[2]} without "
                f"{level.keyword}; check {self._server.setting('url')}, or look into its set-up"
            )
        alike = Counter[str]()
        names = []
        for entry in page:
            name = name_of(entry, level.tag)
            if level.tag not in entry:
                alike[name] += 1
                name += f"-{alike[name]}" if alike[name] > 1 else ""
            names.append(name)
        return names

    def _removed(self, within: tuple[_Level, str] | None) -> bool:
        """Whether the study or series above was deleted from the server meanwhile."""
        if within is None:
            return False
        level, uid = within
        try:
            found = self._server.search(
                level.search, limit=self._page, search_filters={level.keyword: uid}
            )
        except Failed as failed:
            raise self._server.error(failed) from None
        return all(name_of(entry, level.tag) != uid for entry in found)

    def _is_study(self, entry: Entry) -> bool:
        return self._study is None or value_of(entry, "0020000D") == self._study

    def _is_of_modality(self, entry: Entry) -> bool:
        """Whether a series may be of the modality: some servers ignore the filter. An entry without
        modality is kept."""
        return self._modality is None or value_of(entry, _MODALITY) in ("", self._modality)


def study_dates(since: date | None, until: date | None, today: date) -> Iterator[tuple[str, str]]:
    """First and last Study Date (YYYYMMDD) of each month from ``since`` to ``until``.

    All dates before 2000 are one range if ``since`` is None. It has an explicit start: in an
    open range (PS3.4, section C.2.2.2.5) some servers include studies without a date.
    """
    last = today if until is None else until
    if since is None:
        yield _EARLIEST, _written(min(last, _MONTHS_FROM - timedelta(days=1)))
    first = since or _MONTHS_FROM
    while first <= last:
        following = (first.replace(day=1) + timedelta(days=31)).replace(day=1)
        yield _written(first), _written(min(last, following - timedelta(days=1)))
        first = following


def _written(day: date) -> str:
    return day.isoformat().replace("-", "")

"""Lists the instances of many studies with one search, where the server's counts bear it out.

Searching study by study and series by series takes two requests and more for each. A search of all
instances (PS3.18, section 10.6) takes several Study Instance UIDs at once, but servers differ in
whether they obey the list, how it is separated, and whether they tell of everything. So what it
finds counts only for a study of which it lists exactly as many instances as the server says that
the study has (Number of Study Related Instances, 0020,1208). All others are left to the caller.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from indexer.sources.dicomweb.address import is_uid
from indexer.sources.dicomweb.entries import count_of, value_of
from indexer.sources.dicomweb.failure import Failed
from indexer.sources.dicomweb.server import WebServer

__all__ = ["COUNT", "ListedStudy", "Together", "batches"]

_log = logging.getLogger(__name__)

_STUDY, _SERIES, _SOP, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
COUNT = "00201208"
"""Number of Study Related Instances."""
_LONGEST_QUERY = 1500
"""Characters of the UIDs of one search: some servers refuse addresses of more than 2048."""
_MOST = 20_000
"""Studies of more instances are left to the caller, which holds one series at a time."""
_SEPARATORS = (",", "\\")
"""Of the UIDs of a list: that of PS3.18, section 8.3.4.1, and that of PS3.4, which some obey."""
_ATTEMPTS = 2
_STRIKES = 3
"""After so many studies in a row whose count was wrong, no further one is searched whole."""

Pairs = list[tuple[str, str]]
"""Series and SOP Instance UIDs."""
_Search = Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ListedStudy:
    """A study that a server lists. instances: how many it says that the study has; 0 = unknown."""

    uid: str
    instances: int


class Together:
    """The searches for the instances of whole studies on one server, during one listing of it.

    What turned out not to work is not tried again.

    Args:
        page: entries asked for at once.
        modality: only instances of this modality; None = all.
    """

    def __init__(self, server: WebServer, page: int, modality: str | None) -> None:
        self._server, self._page, self._modality = server, page, modality
        self._separators = list(_SEPARATORS)
        self._strikes = 0
        self._fields: list[str] | None = None
        self._asked_for_counts = False

    def search_for_studies(self, **query: Any) -> list[dict[str, Any]]:
        """The answer to a search for studies, with the number of instances of each if the server
        can be moved to tell it.

        By the standard it is told without being asked for; some servers tell it only if it is, and
        others may refuse to be asked, so it is asked for once, after an answer without it.

        Raises:
            Failed: there is no answer.
            ValueError: the answer is no JSON.
        """
        search = self._server.client.search_for_studies
        found = search(fields=self._fields, **query)
        if self._asked_for_counts or not found or _counted(found):
            return found
        self._asked_for_counts = True
        try:
            again = search(fields=[COUNT], **query)
        except (Failed, ValueError, RecursionError):
            return found
        if not _counted(again):
            return found
        self._fields = [COUNT]
        return again

    def takes(self, study: ListedStudy) -> bool:
        """Whether it is worth asking for a study as a whole."""
        # Of a large study, a series of one modality may be a small part.
        most = _MOST if self._modality is None else self._page
        return self._strikes < _STRIKES and 0 < study.instances <= most

    def instances(self, batch: Sequence[ListedStudy]) -> dict[str, Pairs]:
        """The instances of each study that could be listed completely, series by series."""
        wanted = [study for study in batch if self.takes(study)]
        if len(wanted) > 1:
            found = self._of_list(wanted)
            if found is not None:
                return found
        listed: dict[str, Pairs] = {}
        for study in wanted:
            if self.takes(study):
                listed |= self._of_study(study)
        return listed

    def _of_list(self, wanted: Sequence[ListedStudy]) -> dict[str, Pairs] | None:
        """The same by one search for all; None = the server cannot be asked in this way."""
        while self._separators:
            joined = self._separators[0].join(study.uid for study in wanted)
            search = partial(
                self._server.client.search_for_instances,
                search_filters={"StudyInstanceUID": joined},
            )
            found = self._listed(search, wanted)
            if found:
                return found
            del self._separators[:1]
        _log.info("%s cannot be asked for the instances of several studies at once", self._server)
        return None

    def _of_study(self, study: ListedStudy) -> dict[str, Pairs]:
        search = partial(self._server.client.search_for_instances, study.uid)
        found = self._listed(search, [study])
        self._strikes = 0 if found else self._strikes + 1
        if self._strikes == _STRIKES:
            _log.info("%s counts other instances than it lists; its series are", self._server)
        return found

    def _listed(self, search: _Search, wanted: Sequence[ListedStudy]) -> dict[str, Pairs]:
        """What a search lists of the studies for which it is complete."""
        counts = {study.uid: study.instances for study in wanted}
        found = self._found(search, counts)
        complete: dict[str, Pairs] = {}
        for uid, modalities in found.items():
            if len(modalities) != counts[uid]:
                continue
            if self._modality is not None and "" in modalities.values():
                continue
            complete[uid] = _by_series(
                pair for pair, modality in modalities.items() if self._modality in (None, modality)
            )
        return complete

    def _found(
        self, search: _Search, counts: Mapping[str, int]
    ) -> dict[str, dict[tuple[str, str], str]]:
        """The modality of each instance that a search lists, by study, without studies that have
        an instance without valid UIDs. Empty: it does not answer, or with what was not asked for.

        As elsewhere only an empty page ends the list, or one that has nothing new.
        """
        found: dict[str, dict[tuple[str, str], str]] = {uid: {} for uid in counts}
        invalid = set[str]()
        offset, known, expected = 0, 0, sum(counts.values())
        while known <= expected:
            try:
                page = self._server.search(
                    search, attempts=_ATTEMPTS, limit=self._page, offset=offset
                )
            except Failed as failed:
                # If the server as a whole is at fault, the searches by series say so.
                if failed.passing:
                    self._give_up()
                return {}
            for entry in page:
                study, series, sop = (value_of(entry, tag) for tag in (_STUDY, _SERIES, _SOP))
                if study not in found:
                    return {}
                if is_uid(series) and is_uid(sop):
                    found[study][series, sop] = value_of(entry, _MODALITY)
                else:
                    invalid.add(study)
            before, known = known, sum(map(len, found.values()))
            if known == before:
                break
            offset += len(page)
        return {uid: modalities for uid, modalities in found.items() if uid not in invalid}

    def _give_up(self) -> None:
        """Leaves all further studies to the caller."""
        self._separators.clear()
        self._strikes = _STRIKES


def batches(
    studies: Iterable[ListedStudy], together: Together, page: int
) -> Iterator[list[ListedStudy]]:
    """Consecutive studies that fit into one search: about a page of instances, or one study."""
    batch: list[ListedStudy] = []
    instances = characters = 0
    for study in studies:
        alone = not together.takes(study)
        full = (
            instances + study.instances > page or characters + len(study.uid) + 3 > _LONGEST_QUERY
        )
        if batch and (alone or full):
            yield batch
            batch, instances, characters = [], 0, 0
        batch.append(study)
        instances += study.instances
        # Three characters: how the separator is written in an address.
        characters += len(study.uid) + 3
        if alone:
            yield batch
            batch, instances, characters = [], 0, 0
    if batch:
        yield batch


def _counted(found: object) -> bool:
    entries = found if isinstance(found, list) else []
    return any(isinstance(one, dict) and count_of(one, COUNT) for one in entries)


def _by_series(pairs: Iterable[tuple[str, str]]) -> Pairs:
    """The same pairs, those of a series one after the other, in the order of their first."""
    series: dict[str, Pairs] = {}
    for pair in pairs:
        series.setdefault(pair[0], []).append(pair)
    return [pair for one in series.values() for pair in one]

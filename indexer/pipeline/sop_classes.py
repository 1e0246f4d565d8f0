"""Which SOP classes indexed images are of: the index does not keep that, so it is read from where
they were indexed from, at the moment that somebody asks.

Only the first elements of a file are read, and of a server's instances what a search lists.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.errors import ImageRefused, SettingsError, SourceError
from engine.records import ImageRecord
from engine.settings import DicomWebSettings, Settings
from indexer.files.locators import file_path, is_file
from indexer.files.open_file import open_file
from indexer.files.sop_class import read_sop_class

if TYPE_CHECKING:
    from indexer.sources.dicomweb.server import WebServer

__all__ = ["sop_classes"]

_log = logging.getLogger(__name__)

_MOST_SEARCHES = 32
"""Most searches on servers for one answer; a person waits for it."""
_SECONDS = 5.0
"""For how long the answer to one is waited for."""
_UID = re.compile(r"[0-9]+(\.[0-9]+)+", re.ASCII)
_SOP_CLASS, _SOP_INSTANCE = "00080016", "00080018"


def sop_classes(
    origins: Mapping[str, tuple[ImageRecord, str]], settings: Settings
) -> dict[str, str]:
    """The SOP Class UIDs of images, by id; without those whose original is not there any more, is
    another instance by now, lies in an archive (zip, tar) or on a server that does not answer.

    Args:
        origins: record and locator of each image, by its id.
    """
    found: dict[str, str] = {}
    servers = _Servers(settings)
    for image_id, (record, locator) in origins.items():
        if record.sop is None:
            continue
        sop_class = _of_file(record, locator) if is_file(locator) else servers.of(record, locator)
        if sop_class is not None and len(sop_class) <= 64 and _UID.fullmatch(sop_class):
            found[image_id] = sop_class
    return found


def _of_file(record: ImageRecord, locator: str) -> str | None:
    try:
        with open_file(file_path(locator)) as fp:
            read = read_sop_class(fp)
    except (OSError, ImageRefused):
        return None
    return read[0] if read is not None and read[1] == record.sop else None


class _Servers:
    """DICOMweb servers. One that fails is not asked again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servers: dict[str, WebServer | None] = {}
        self._left = _MOST_SEARCHES

    def of(self, record: ImageRecord, locator: str) -> str | None:
        name = record.source
        if name is None or not (record.study and record.series) or self._left <= 0:
            return None
        try:
            if name not in self._servers:
                self._servers[name] = self._server(name)
            server = self._servers[name]
            # Only what is at the address that the settings name now.
            if server is None or not locator.startswith(f"{server.base}/studies/"):
                return None
            self._left -= 1
            return _asked(server, record)
        except (SettingsError, SourceError) as error:
            self._servers[name] = None
            _log.warning("SOP classes of images of %r are not known: %s", name, error)
            return None

    def _server(self, name: str) -> WebServer | None:
        named = self._settings.sources.get(name)
        if not isinstance(named, DicomWebSettings):
            return None
        from indexer.sources.dicomweb.server import WebServer

        seconds = min(named.timeout_seconds, _SECONDS)
        hasty = {"attempts": 1, "timeout_seconds": seconds}
        return WebServer(name, named.model_copy(update=hasty))


def _asked(server: WebServer, record: ImageRecord) -> str | None:
    from indexer.sources.dicomweb.failure import Failed

    try:
        entries = server.search(
            server.client.search_for_instances,
            study_instance_uid=record.study,
            series_instance_uid=record.series,
            search_filters={"SOPInstanceUID": record.sop},
            limit=1,
        )
    except Failed as failed:
        raise server.error(failed) from None
    found = (_value(one, _SOP_CLASS) for one in entries if _value(one, _SOP_INSTANCE) == record.sop)
    return next(found, None)


def _value(entry: Mapping[str, object], tag: str) -> str | None:
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else None
    return first.rstrip("\0 ") if isinstance(first, str) else None

"""Links that open a hit in the hospital's own viewers, made from the templates in the settings."""

import re
from string import Formatter

from api.schemas import ViewerLink
from engine.integration_settings import ViewerSettings
from engine.records import ImageRecord
from engine.settings import Settings
from indexer.archive import TenantArchive
from indexer.sources.uids import why_unknown

__all__ = ["ViewerLinks", "example_link", "links_from", "links_from_image", "links_from_study"]

_UID = re.compile(r"[0-9]+(\.[0-9]+)+", re.ASCII)
_LONGEST_UID = 64


class ViewerLinks:
    """The viewers of an archive.

    Args:
        settings: name the viewers, and which sources' studies each of their servers has.
        query: record of what was searched for, if it is indexed; hits can then be shown beside
            it.
    """

    def __init__(self, settings: Settings, query: ImageRecord | None = None) -> None:
        self._settings = settings
        self._viewers = settings.viewers
        known = query is not None and why_unknown(query, settings) is None
        self._query = query if known else None

    def __call__(self, record: ImageRecord) -> list[ViewerLink]:
        """The links of a hit, in the order of the settings. A hit without DICOM UIDs has none, nor
        has one of a source that no viewer has, or whose UIDs no other system knows."""
        if why_unknown(record, self._settings) is not None:
            return []
        return [
            ViewerLink(
                name=name, title=viewer.shown_as(name), url=url, beside=self._beside(viewer, record)
            )
            for name, viewer in self._viewers.items()
            if record.source in viewer.sources
            and (url := _first(viewer.templates, _named(record))) is not None
        ]

    def _beside(self, viewer: ViewerSettings, record: ImageRecord) -> str | None:
        query = self._query
        # Of a study that the viewer's server may lack the whole page would be lost.
        if query is None or query.source not in viewer.sources or query.study == record.study:
            return None
        study = _uid(query.study)
        if study is None:
            return None
        return _first(viewer.templates_beside, {**_named(record), "query_study": study})


def links_from(archive: TenantArchive, query: ImageRecord | None = None) -> ViewerLinks:
    """The links of an archive's viewers. query: as of :class:`ViewerLinks`."""
    return ViewerLinks(archive.settings, query)


def links_from_image(archive: TenantArchive, image_id: str | None) -> ViewerLinks:
    """The links of an archive's viewers, from an indexed image; None = an upload was the query."""
    if image_id is None or not archive.settings.viewers:
        return links_from(archive)
    return links_from(archive, archive.engine.image(image_id).record)


def links_from_study(archive: TenantArchive, study: str | None) -> ViewerLinks:
    """The links of an archive's viewers, from a study; None = none was the query."""
    if study is None or not archive.settings.viewers:
        return links_from(archive)
    return links_from(archive, archive.first_of_study(study))


def _named(record: ImageRecord) -> dict[str, str]:
    """The placeholders that this hit fills."""
    found = {"study": _uid(record.study), "series": _uid(record.series), "sop": _uid(record.sop)}
    named = {name: uid for name, uid in found.items() if uid is not None}
    return {**named, "frame": str(record.frame + 1)}


def _uid(written: str | None) -> str | None:
    """The UID, if it is one: nothing else ever becomes part of an address."""
    if written is None or len(written) > _LONGEST_UID or not _UID.fullmatch(written):
        return None
    return written


def _first(templates: tuple[str, ...], named: dict[str, str]) -> str | None:
    """The link by the first template of whose placeholders none is missing; None = by none."""
    for template in templates:
        asked = {name for _, name, _, _ in Formatter().parse(template) if name}
        if asked <= named.keys():
            return template.format(**named)
    return None


def example_link(sop: str, query_study: str | None = None) -> dict[str, str | None]:
    """A link for the examples of the OpenAPI document. sop: below its series, that below its
    study."""
    series = sop.rpartition(".")[0]
    study = series.rpartition(".")[0]
    viewer = ViewerSettings(kind="ohif", url="https://viewer.example", sources=("folder",))
    record = ImageRecord(study=study, series=series, sop=sop, source="folder")
    query = None if query_study is None else ImageRecord(study=query_study, source="folder")
    settings = Settings.model_construct(viewers={"ohif": viewer})
    return ViewerLinks(settings, query)(record)[0].model_dump()

"""Specifies what to index, in a form that a job can store, and opens the source for it."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from engine.errors import QueryError, SettingsError
from engine.settings import DicomWebSettings, FolderSettings, Settings, SourceSettings
from indexer.files.locators import ARCHIVE_SCHEMES, beginnings, shown
from indexer.sources.base import ImageSource

__all__ = ["SourceSpec", "name_in_source"]

_FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What to index: folders and files, or a source that the settings name.

    paths: absolute; empty for a named source. name: of the source in the settings.
    labels: "folder" = the name of a file's folder is its label; None = no labels.
    since, until, modality, study: restrict the search on a DICOMweb server to study dates (ISO
    8601, both inclusive), a modality, a Study Instance UID.
    """

    paths: tuple[str, ...] = ()
    name: str | None = None
    labels: str | None = None
    since: str | None = None
    until: str | None = None
    modality: str | None = None
    study: str | None = None

    @classmethod
    def asked(
        cls,
        paths: Sequence[Path] | None,
        name: str | None,
        labels: str | None = None,
        since: str | None = None,
        until: str | None = None,
        modality: str | None = None,
        study: str | None = None,
    ) -> "SourceSpec":
        """The specification for arguments of the command line.

        Raises:
            QueryError: both paths and a name, or neither; or ``labels`` is not "folder".
        """
        if bool(paths) == (name is not None):
            raise QueryError("name folders and files, or one source of the settings with --source")
        if labels not in (None, "folder"):
            raise QueryError(f"--labels is {labels!r}; use 'folder' or leave it out")
        whole = tuple(os.path.abspath(path) for path in paths or ())  # noqa: PTH100 - keeps links
        return cls(whole, name, labels, since, until, modality, study)

    @classmethod
    def parse(cls, text: str) -> "SourceSpec":
        """The specification that :meth:`to_json` wrote."""
        found = json.loads(text)
        return cls(**{**found, "paths": tuple(found["paths"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def source(self) -> str:
        """The name of the source in ledger and index."""
        return self.name or _FOLDER

    @property
    def is_whole(self) -> bool:
        """Whether it covers the whole source, so that instances not found have vanished from it."""
        return not (self.since or self.until or self.modality or self.study)

    def settings(self, settings: Settings) -> SourceSettings:
        """The settings of the source: address or paths, hours, rates.

        Raises:
            SettingsError: the settings name no such source.
        """
        if self.name is None:
            return SourceSettings()
        try:
            return settings.sources[self.name]
        except KeyError:
            known = ", ".join(sorted(settings.sources)) or "none"
            raise SettingsError(
                f"there is no source {self.name!r} in the settings (named are: {known}); "
                f"add [sources.{self.name}] to precedent.toml"
            ) from None

    def open(self, settings: Settings) -> ImageSource:
        """Opens the source.

        Raises:
            SettingsError: the settings name no such source.
            QueryError: a path does not exist, or dates, modality or study are given for folders.
        """
        named = self.settings(settings)
        if self.name is None or isinstance(named, FolderSettings):
            if not self.is_whole:
                raise QueryError(
                    "dates, modality and study choose among what a DICOMweb server has; "
                    "leave them out for folders"
                )
            from indexer.sources.folder import FolderSource

            return FolderSource(
                self._folders(named),
                name=self.source,
                leave_out=settings.data_dir,
                label_from_folder="folder" in (self.labels, getattr(named, "labels", None)),
                limits=settings.limits,
                zip_limits=settings.zip,
            )
        from indexer.sources.dicomweb.source import DicomWebSource

        return DicomWebSource(
            self.name,
            named,  # type: ignore[arg-type]  # of the two kinds, the other one
            settings.limits,
            since=_date(self.since, "--since"),
            until=_date(self.until, "--until"),
            modality=self.modality,
            study=self.study,
        )

    def scope(self, settings: Settings) -> list[str]:
        """The prefixes of the locators that its instances can have; empty = any locator."""
        named = self.settings(settings)
        if isinstance(named, DicomWebSettings):
            return [str(named.url).rstrip("/") + "/studies/"]
        starts = []
        for path in self._folders(named):
            name = os.fsencode(path)
            # The files of a folder, or the file itself; and members of archives in either.
            starts += [start + "/" for start in beginnings("file", name)]
            for scheme in ARCHIVE_SCHEMES:
                starts += [start + end for start in beginnings(scheme, name) for end in "/#"]
            if not path.is_dir():
                starts += beginnings("file", name)
        return starts

    def _folders(self, named: SourceSettings) -> list[Path]:
        if isinstance(named, FolderSettings):
            return [Path(os.path.abspath(path)) for path in named.paths]  # noqa: PTH100 - keeps links
        return [Path(path) for path in self.paths]


def name_in_source(locator: str, settings: Settings) -> str:
    """Where an instance lies in the folder of the named source that has it; of another file its
    name alone, and of an instance on a server its address there."""
    name = shown(locator)
    folders = [
        Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
        for source in settings.sources.values()
        if isinstance(source, FolderSettings)
        for path in source.paths
    ]
    for folder in sorted(folders, key=lambda one: -len(one.parts)):
        if Path(name).is_relative_to(folder) and Path(name) != folder:
            return Path(name).relative_to(folder).as_posix()
    path, mark, member = name.partition("!")
    return Path(path).name + mark + member


def _date(written: str | None, option: str) -> date | None:
    if written is None:
        return None
    try:
        return date.fromisoformat(written)
    except ValueError:
        raise QueryError(f"{option} is {written!r}; write a date as in 2024-03-31") from None

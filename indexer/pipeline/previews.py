"""Renders indexed images from their files, in a separate process, at the moment they are asked
for."""

import secrets

from engine.errors import (
    ImageRefused,
    QueryError,
    RefusalReason,
    SettingsError,
    SourceChanged,
    SourceGone,
)
from engine.model.preprocess import Preprocess
from engine.records import ImageRecord
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.files.locators import ARCHIVE_SCHEMES, Image, file_locator, file_path
from indexer.imaging.frames import FramePolicy
from indexer.imaging.prepare import ReadTask
from indexer.imaging.preview import Preview, preview
from indexer.imaging.voi import Window
from indexer.pipeline.reader_pool import ReaderPool
from indexer.sources.opening import SourceSpec

__all__ = ["PreviewReader", "check_same", "gone", "image_of"]


class PreviewReader:
    """Reads one file at a time. Close it, or use it as a context manager.

    Args:
        settings: where sources are, limits, time and memory for a file.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ReaderPool(
            preview,
            processes=1,
            seconds=settings.indexing.reader_seconds,
            memory_bytes=settings.indexing.reader_memory_bytes,
        )

    def __enter__(self) -> "PreviewReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def render(
        self,
        record: ImageRecord,
        locator: str,
        content: str | None,
        *,
        frame: int,
        side: int,
        window: Window | None = None,
    ) -> bytes:
        """A JPEG of a frame of an indexed instance.

        Args:
            record: of the image. locator, content: of its file, as the ledger has them.
            frame: counted from 0. side: longest side in pixels.
            window: None = as the header says.

        Raises:
            SourceGone: the file, or the setting that says where it is, is not there any more.
            SourceChanged: another file is in its place.
            QueryError: there is no such frame, or it has no grey values for a window.
            ImageRefused: the file cannot be read. SourceError: its server cannot be reached.
        """
        image = image_of(record, locator, self._settings)
        task = ReadTask(
            image=image,
            limits=self._settings.limits,
            zip_limits=self._settings.zip,
            frames=FramePolicy("given", limit=1, derived=True, number=frame),
            thumbnail_side=side,
            preprocess=Preprocess(),
            # What it would name is thrown away.
            pseudonym_key=secrets.token_bytes(32),
            view="header" if window is None else window,
        )
        ((_, found),) = self._pool.map([task])
        if isinstance(found, ImageRefused):
            if found.reason is RefusalReason.UNREADABLE:
                raise gone(record, locator, self._settings)
            raise found
        check_same(record, image, content, found.sop, found.content_sha256)
        _check(found, frame, window)
        return found.jpeg


def _check(found: Preview, frame: int, window: Window | None) -> None:
    if frame >= found.frames:
        raise QueryError(
            f"frame is {frame}; the file has {found.frames}, counted from 0"
            if found.frames > 1
            else f"frame is {frame}; the file has only frame 0"
        )
    if window is not None and (found.is_color or found.sop is None):
        raise QueryError(
            "window and level are for grey values of DICOM images; leave them out for this image"
        )


def check_same(
    record: ImageRecord, image: Image, content: str | None, sop: str | None, sha256: str
) -> None:
    """Checks that the file that was read is the one that was indexed.

    Args:
        record, content: of what was indexed. image: where it was read from. sop, sha256: of what
            was read.

    Raises:
        SourceChanged: it is another one.
    """
    # What a server sends again is another file each time.
    if not (sop == record.sop if isinstance(image, bytes) else sha256 == content):
        raise SourceChanged(
            f"another file is where this image was indexed from (source "
            f"{record.source or 'folder'!r}); index the source again"
        )


def image_of(record: ImageRecord, locator: str, settings: Settings) -> Image:
    """The content of an indexed image's file, where it is now.

    Args:
        record: of the image. locator: of its file.

    Raises:
        SourceGone: the file, or the setting that says where it is, is not there any more.
        ImageRefused: it cannot be opened. SourceError: its server cannot be reached.
    """
    scheme = locator.partition(":")[0]
    if scheme in ("file", *ARCHIVE_SCHEMES):
        from indexer.sources.folder import FolderSource

        if not file_path(locator.partition("#")[0]).is_file():
            raise gone(record, locator, settings)
        (found,) = FolderSource([], zip_limits=settings.zip).images([locator])
    else:
        found = _from_server(record, locator, settings)
    if isinstance(found, ImageRefused):
        if found.reason is RefusalReason.UNREADABLE:
            raise gone(record, locator, settings)
        raise found
    return found


def _from_server(record: ImageRecord, locator: str, settings: Settings) -> Image | ImageRefused:
    """The content from a DICOMweb server; only from the address that the settings name now."""
    spec = SourceSpec(name=record.source)
    try:
        if not any(locator.startswith(start) for start in spec.scope(settings)):
            raise gone(record, locator, settings)
        source = spec.open(_impatient(settings, record.source or ""))
    except SettingsError:
        raise gone(record, locator, settings) from None
    (found,) = source.images([locator])
    return found


def _impatient(settings: Settings, name: str) -> Settings:
    """The settings, with a source that is not waited for: a person waits for the picture."""
    named = settings.sources[name].model_copy(update={"attempts": 1})
    return settings.model_copy(update={"sources": {name: named}})


def gone(record: ImageRecord, locator: str, settings: Settings) -> SourceGone:
    """The error that says what is missing, and by which setting it was found; never where."""
    name = record.source or "folder"
    folder = DataDir(settings.data_dir).received_for(record.tenant)
    received = file_locator(folder.absolute()) + "/"
    if locator.startswith(received):
        return SourceGone(
            "the received file of this image is not kept; with the setting receive.keep those that "
            "are sent from then on are"
        )
    if not locator.startswith(("file:", *(scheme + ":" for scheme in ARCHIVE_SCHEMES))):
        return SourceGone(
            f"the server of source {name!r} does not have this image any more, or the setting "
            f"sources.{name}.url names another one"
        )
    setting = f" (setting sources.{name}.paths)" if name in settings.sources else ""
    return SourceGone(
        f"the file of this image is not in source {name!r}{setting} any more; bring it back, or "
        "index the source with --delete-vanished"
    )

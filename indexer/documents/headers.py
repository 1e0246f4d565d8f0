"""Reads the headers of indexed images from their source, at the moment that a document is made."""

import threading
from collections.abc import Sequence
from typing import Self

from engine.errors import DocumentError, ImageRefused, SourceChanged, SourceGone
from engine.settings import Settings
from indexer.archive import Original
from indexer.datadir.layout import DataDir
from indexer.imaging.deidentify import pseudonym
from indexer.imaging.patient_header import HeaderTask, PatientHeader, read_patient_header
from indexer.imaging.placeholders import is_placeholder
from indexer.pipeline.previews import image_of
from indexer.pipeline.reader_pool import ReaderPool

__all__ = ["Headers"]

_UIDS = (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID"), ("sop", "SOPInstanceUID"))


class Headers:
    """Reads headers, one request after the other, in a process that starts when it is first needed.
    Close it, or use it as a context manager.

    Args:
        settings: where sources are, limits, time and memory for a file.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pool: ReaderPool[HeaderTask, PatientHeader] | None = None

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, originals: Sequence[Original]) -> list[PatientHeader]:
        """The headers of indexed images, in order.

        Raises:
            DocumentError: a file is gone, is another one by now, or has other UIDs than the index.
            SourceError: a server cannot be reached.
        """
        try:
            tasks = [self._task(one) for one in originals]
            with self._lock:
                found = [result for _, result in self._reading().map(tasks)]
            key = DataDir(self._settings.data_dir).pseudonym_key(self._settings)
            return [_checked(one, read, key) for one, read in zip(originals, found, strict=True)]
        except (SourceGone, SourceChanged) as error:
            raise DocumentError(f"no document can be made: {error}") from None
        except ImageRefused as refused:
            raise DocumentError(
                f"no document can be made: the original cannot be read ({refused}); index its "
                "source again"
            ) from None

    def _task(self, one: Original) -> HeaderTask:
        image = image_of(one.record, one.locator, self._settings)
        return HeaderTask(image, self._settings.limits, self._settings.zip)

    def _reading(self) -> "ReaderPool[HeaderTask, PatientHeader]":
        if self._pool is None:
            self._pool = ReaderPool(
                read_patient_header,
                processes=1,
                seconds=self._settings.indexing.reader_seconds,
                memory_bytes=self._settings.indexing.reader_memory_bytes,
            )
        return self._pool


def _checked(one: Original, read: PatientHeader | ImageRefused, key: bytes) -> PatientHeader:
    if isinstance(read, ImageRefused):
        raise read
    record = one.record
    for field, keyword in _UIDS:
        if getattr(record, field) != read[keyword]:
            raise DocumentError(
                f"the index has another {keyword} for image {one.id} than its file, of source "
                f"{record.source or 'folder'!r}: a document could not refer to it; index the "
                "source again, with UIDs kept as they are"
            )
    patient = read["PatientID"]
    known = None if is_placeholder(patient) else pseudonym(read["IssuerOfPatientID"], patient, key)
    if known != record.patient:
        raise DocumentError(
            f"the file of image {one.id} names another patient than when it was indexed from "
            f"source {record.source or 'folder'!r}; index the source again"
        )
    return read

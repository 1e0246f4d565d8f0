"""Lists the images of an archive as training examples, with labels and patients from DICOM headers.

Only headers are read, no pixels. Patients are told apart by a keyed pseudonym; it is never stored,
so the key need not be secret.
"""

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.uid import DeflatedExplicitVRLittleEndian

from engine.errors import ImageRefused, RefusalReason, TrainingDataError
from engine.records import ImageRecord
from engine.settings import ImageLimits
from engine.training.data import Example
from indexer.files.dicom_structure import find_dataset
from indexer.files.locators import file_path
from indexer.imaging.dataset import parse_dataset
from indexer.imaging.deidentify import HEADER_KEYWORDS, record_of
from indexer.imaging.dicom import is_dicom
from indexer.imaging.pixels import PIXEL_KEYWORDS
from indexer.imaging.quiet import hushed
from indexer.imaging.read import read_image
from indexer.sources.folder import FolderSource

__all__ = ["from_dicom_tags", "grouped_by_content", "grouped_by_patient", "unlabelled"]

_log = logging.getLogger(__name__)
_KEY = b"never stored"
_TAGS = frozenset(tag for keyword in HEADER_KEYWORDS if (tag := tag_for_keyword(keyword)))
_NO_MODALITY = "no-modality"
_NAMED = 8


def from_dicom_tags(
    root: Path, limits: ImageLimits, *, min_class_size: int = 10, leave_out: Path | None = None
) -> list[Example]:
    """The DICOM images below ``root``, labelled by modality, body part and view: "CR HAND PA".

    Images of one patient, or of one study if no patient is named, form a group. Files that are no
    DICOM image or name no modality are left out, and counted in the log.

    Args:
        limits: for the structure of a file.
        min_class_size: classes with fewer images are left out, and named in the log.
        leave_out: a folder that is not entered.

    Raises:
        TrainingDataError: ``root`` is no folder, or has fewer than two classes of that size.
    """
    examples = []
    left_out: Counter[str] = Counter()
    for path in _files(root, leave_out):
        try:
            record = _read_header(path, limits)
        except ImageRefused as refused:
            left_out[refused.code] += 1
            continue
        if record.modality is None:
            left_out[_NO_MODALITY] += 1
            continue
        terms = (record.modality, record.body_part, record.view)
        label = " ".join(term for term in terms if term is not None)
        examples.append(Example(path, label, _owner(record)))
    if left_out:
        _log.warning(
            "left out %d of %d files: %s",
            left_out.total(),
            left_out.total() + len(examples),
            _listed(left_out),
        )
    if not examples:
        raise TrainingDataError(
            f"{root} has no DICOM image that names its modality ({_listed(left_out) or 'no files'})"
            "; give a folder of DICOM files, or labels of another kind"
        )
    return _without_rare_classes(examples, root, min_class_size)


def unlabelled(root: Path, limits: ImageLimits, *, leave_out: Path | None = None) -> list[Example]:
    """All files below ``root``, without labels; DICOM files of one patient form a group.

    Raises:
        TrainingDataError: ``root`` is no folder, or has no files.
    """
    examples = [Example(path) for path in _files(root, leave_out)]
    if not examples:
        raise TrainingDataError(f"{root} has no files; name a folder of images")
    return grouped_by_patient(examples, limits)


def grouped_by_patient(examples: Iterable[Example], limits: ImageLimits) -> list[Example]:
    """The same examples; a missing group is filled in from the DICOM header: "patient " and a
    pseudonym, or if no patient is named, "study " and its UID."""
    return [
        example
        if example.group is not None
        else replace(example, group=_owner_of(example.path, limits))
        for example in examples
    ]


def grouped_by_content(examples: Iterable[Example]) -> list[Example]:
    """The same examples; a missing group is filled in with "file " and the SHA-256 of the file, so
    that copies form a group. One that cannot be read has its path instead."""
    return [
        example
        if example.group is not None
        else replace(example, group=f"file {_content(example.path)}")
        for example in examples
    ]


def _content(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return str(path)


def _without_rare_classes(examples: list[Example], root: Path, least: int) -> list[Example]:
    sizes = Counter(example.label or "" for example in examples)
    rare = Counter({label: count for label, count in sizes.items() if count < least})
    if rare:
        _log.warning(
            "left out %d images of %d classes with fewer than %d: %s",
            rare.total(),
            len(rare),
            least,
            _listed(rare),
        )
    left = sizes - rare
    if len(left) < 2:
        raise TrainingDataError(
            f"{root} has {len(left)} class(es) of at least {least} images "
            f"({_listed(Counter(dict(sizes.most_common(_NAMED))))}), and hashing learns from two; "
            "lower the class size, or train without labels"
        )
    return [example for example in examples if example.label in left]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _files(root: Path, leave_out: Path | None) -> Iterator[Path]:
    """Files below ``root`` in a fixed order, without hidden files and files in hidden folders."""
    if not root.is_dir():
        raise TrainingDataError(f"{root} is not a folder; name the one that holds the images")
    top = Path(os.path.abspath(root))  # noqa: PTH100 - keeps links, as the walk does
    for found in FolderSource([top], leave_out=leave_out, open_archives=False).instances():
        path = file_path(found.locator)
        if not any(part.startswith(".") for part in path.relative_to(top).parts):
            yield path


def _owner_of(path: Path, limits: ImageLimits) -> str | None:
    try:
        return _owner(_read_header(path, limits))
    except ImageRefused:
        return None


def _owner(record: ImageRecord) -> str | None:
    if record.patient:
        return f"patient {record.patient}"
    return f"study {record.study}" if record.study else None


def _read_header(path: Path, limits: ImageLimits) -> ImageRecord:
    """The de-identified record of the DICOM image at ``path``.

    Raises:
        ImageRefused: it cannot be read, is no DICOM file, or has no pixels.
    """
    # pydicom's warnings and log lines quote values, which may identify patients.
    hushed("pydicom")
    try:
        if not path.is_file():
            raise ImageRefused(RefusalReason.UNREADABLE, "not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _parsed(path, limits)
    except ImageRefused:
        raise
    except OSError:
        raise ImageRefused(RefusalReason.UNREADABLE, "the file cannot be read") from None
    except Exception as error:  # pydicom's depend on the bytes; none of them is quoted
        raise ImageRefused(
            RefusalReason.DAMAGED, f"the header makes no sense ({type(error).__name__})"
        ) from None


def _parsed(path: Path, limits: ImageLimits) -> ImageRecord:
    size = path.stat().st_size
    with path.open("rb") as fp:
        if not is_dicom(fp, size):
            raise ImageRefused(RefusalReason.NOT_AN_IMAGE, "the content is not DICOM")
        encoding = find_dataset(fp)
        deflated = encoding.syntax == DeflatedExplicitVRLittleEndian
        if not deflated:
            parsed = parse_dataset(fp, size, encoding, _TAGS, PIXEL_KEYWORDS, limits.max_nesting)
            if parsed.structure.missing:
                raise ImageRefused(RefusalReason.TRUNCATED, "the file ends in an element")
            if parsed.head is None:
                raise ImageRefused(RefusalReason.NO_PIXELS, "a dataset without pixel data")
            return record_of(parsed.header, _KEY)
    # A deflated header is in one stream with its pixels: read_image inflates it within limits.
    return read_image(path, limits, frames_per_instance=1, pseudonym_key=_KEY).record

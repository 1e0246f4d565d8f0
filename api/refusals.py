"""What a refusal means and what to do about it: for the command line, the pages and the docs.

The worst come first: what may be an image that nobody finds, because reading failed here; then
files that are broken; then what is not supported or above a limit; then what is no picture anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from api.marking import later
from engine.errors import RefusalReason

__all__ = ["GROUPS", "REFUSALS", "Advice"]


@dataclass(frozen=True, slots=True)
class Advice:
    """means: what it is. do: what to do about it. Both are marked for the catalogues; settings and
    options stand between backticks."""

    means: str
    do: str


_R = RefusalReason
GROUPS: Mapping[str, Mapping[RefusalReason, Advice]] = {
    "An image that nobody may find": {
        _R.WORKER_DIED: Advice(
            later(
                "each worker that indexed it was killed or crashed, also with nothing else in hand"
            ),
            later(
                "look at it with another viewer; give workers more memory, then `jobs retry "
                "--refused`"
            ),
        ),
        _R.READER_DIED: Advice(
            later("the decoder crashed or ran out of memory on it"),
            later("raise `indexing.reader_memory_bytes`; tried again by each run"),
        ),
        _R.TOO_SLOW: Advice(
            later("not read within `indexing.reader_seconds`"),
            later("raise it, or give workers more cores; tried again by each run"),
        ),
        _R.UNREADABLE: Advice(
            later(
                "the file, member or server's instance cannot be got at, or its path is too long "
                "for the ledger"
            ),
            later(
                "permissions, the share, the server, shorter names; it is tried again by each run"
            ),
        ),
    },
    "Broken": {
        _R.TRUNCATED: Advice(
            later("it ends before what its header declares"),
            later("send it again from its source"),
        ),
        _R.DAMAGED: Advice(
            later("the content contradicts itself"),
            later("send it again; look at it with another viewer"),
        ),
        _R.EMPTY_FILE: Advice(
            later("the file has no bytes"),
            later("send it again from its source"),
        ),
        _R.CONFLICTING_UID: Advice(
            later(
                "another file, which the detail names, has its SOP Instance UID and another "
                "picture; the same pixels in another encoding are a duplicate"
            ),
            later(
                "find out which is right, remove the other; with `--delete-vanished` the one that "
                "stays is taken in the same run"
            ),
        ),
    },
    "Not supported, or above a limit": {
        _R.UNSUPPORTED_SYNTAX: Advice(
            later("no decoder for its compression"),
            later("convert it"),
        ),
        _R.UNSUPPORTED_PIXELS: Advice(
            later("a pixel layout that cannot be shown"),
            later("convert it"),
        ),
        _R.TOO_LARGE: Advice(
            later("above one of `limits.*` or `zip.*`, which the detail names"),
            later("raise that limit if the file is right"),
        ),
        _R.NESTED_TOO_DEEP: Advice(
            later("sequences in sequences beyond `limits.max_nesting`"),
            later("look at it: files are not like that"),
        ),
    },
    "No picture": {
        _R.TOO_SMALL: Advice(
            later("fewer than `limits.min_side` rows or columns"),
            later("nothing, or lower the limit"),
        ),
        _R.NOT_A_PICTURE: Advice(
            later(
                "segmentations, RT dose grids, parametric maps: pixels that are labels, doses or "
                "measurements; the detail names the SOP class"
            ),
            later("nothing, or set `indexing.take_derived` and index with `--retry-refused`"),
        ),
        _R.NO_PIXELS: Advice(
            later("SR, PR, KO, PDF and the like; the detail names the SOP class"),
            later("nothing"),
        ),
        _R.NOT_AN_IMAGE: Advice(
            later(
                "neither DICOM nor NIfTI, PNG, JPEG, JPEG 2000, TIFF, WebP or BMP; or an archive "
                "that was not opened"
            ),
            later("nothing; such files lie beside images"),
        ),
    },
}
"""By what it is about, and by reason: the worst first."""

REFUSALS: Mapping[RefusalReason, Advice] = {
    reason: advice for group in GROUPS.values() for reason, advice in group.items()
}
"""The same without the groups."""

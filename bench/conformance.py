"""Conformance: our pictures beside dcmtk's and gdcm's, and which of them the standard says.

    python -m bench.conformance [--count 500] [--seed 0] [--folder DIR]... [--page docs/…]

Compared are files with drawn headers (``bench.drawn_headers``), the images among pydicom's test
files, and any folders, such as the NEMA WG04 set. What is right is rendered from the standard
(``bench.reference_rendering``). Needs dcmtk and python-gdcm.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.conformance_files import Sample, drawn_samples, folder_samples, pydicom_samples
from bench.conformance_page import page_tables, replace_tables
from bench.isolation import Isolated
from bench.our_pictures import our_proportions, ours
from bench.peers import Decoded, Unsupported, by_dcmtk, dcmtk_version, gdcm_cells, gdcm_version
from bench.reference_rendering import Departure, NoReference, Rendering, render
from bench.square_pixels import pixel_ratio
from bench.verdicts import LOSSLESS, LOSSY, Judged, Outcome, compared, judge, kind_rows

_SECONDS = 60.0
_PRELOAD = ("bench.our_pictures", "bench.peers", "bench.conformance")
# A viewer makes square what is up to so many times as high as wide, or as wide as high.
_MAX_RATIO = 8.0


def judged(sample: Sample, isolated: Isolated, scratch: Path) -> Judged:
    """What each reader does with a file."""
    picture = isolated(ours, sample.path)
    decoded = isolated(gdcm_cells, sample.path)
    reference = _reference(sample, decoded)
    result = Judged(sample.name, sample.source, sample.kinds)
    # dcmtk reads no window of functional groups; without any, it is told which to take.
    told = None if reference is None else reference((Departure.FRAME_VOI,), None)
    found: dict[str, NDArray[np.uint8] | str] = {
        "ours": picture,
        "dcmtk": _by_dcmtk(sample, told, scratch),
        "gdcm": _by_gdcm(sample, decoded),
    }
    ratio = _ratio(sample)
    for reader, shown in found.items():
        ends = told.ends if told and reader == "dcmtk" and not told.voi else None
        result.outcomes[reader] = _outcome(shown, sample, reference, found, ratio, ends)
    if sample.cells is None:
        _outvoted(result.outcomes, found)
    if ratio != 1 and result.outcomes["ours"].verdict == "right":
        result.outcomes["ours"] = _with_proportions(result.outcomes["ours"], sample, isolated)
    return result


_Ends = tuple[float, float] | None
_Reference = Callable[[Collection[Departure], _Ends], Rendering]


def _reference(sample: Sample, decoded: Decoded | str) -> _Reference | None:
    """What is right, or would be without some steps; None where nothing says it."""
    cells, header = sample.cells, sample.header
    if cells is None:
        if isinstance(decoded, str):
            return None
        cells = decoded.cells
        header = _as_decoded(sample, decoded)

    @cache
    def rendered(without: frozenset[Departure], ends: _Ends) -> Rendering:
        little = sample.little_endian
        return render(cells, header, little_endian=little, without=without, ends=ends)

    try:
        rendered(frozenset(), None)
    except (NoReference, ValueError, TypeError, AttributeError, IndexError, OverflowError):
        return None
    return lambda without, ends: rendered(frozenset(without), ends)


def _as_decoded(sample: Sample, decoded: Decoded) -> Any:
    """The header, with the photometric interpretation that the cells have after decoding."""
    if decoded.photometric == sample.header.get("PhotometricInterpretation"):
        return sample.header
    header = sample.header.copy()
    header.PhotometricInterpretation = decoded.photometric
    return header


def _by_dcmtk(sample: Sample, told: Rendering | None, scratch: Path) -> NDArray[np.uint8] | str:
    try:
        return by_dcmtk(sample.path, sample.syntax, told, scratch / "dcmtk.pnm")
    except Unsupported as why:
        return str(why)


def _by_gdcm(sample: Sample, decoded: Decoded | str) -> NDArray[np.uint8] | str:
    """What gdcm's cells and rescale give by the standard's other steps."""
    if isinstance(decoded, str):
        return decoded
    header = _as_decoded(sample, decoded)
    # gdcm has no Modality LUT; the file's is then applied for it.
    has_table = "ModalityLUTSequence" in header
    try:
        return render(
            decoded.cells,
            header,
            little_endian=sample.little_endian,
            without={Departure.UNUSED_BITS},
            rescale=None if has_table else decoded.rescale,
        ).pixels
    except (NoReference, ValueError, TypeError, AttributeError, IndexError) as why:
        return str(why) or type(why).__name__


def _outcome(
    shown: NDArray[np.uint8] | str,
    sample: Sample,
    reference: _Reference | None,
    found: dict[str, NDArray[np.uint8] | str],
    ratio: float,
    ends: _Ends,
) -> Outcome:
    if isinstance(shown, str):
        return Outcome("refused", said=shown)
    if reference is None:
        others = [
            picture
            for picture in found.values()
            if not isinstance(picture, str) and picture is not shown
        ]
        same = [picture for picture in others if picture.shape == shown.shape]
        r, levels = compared(shown, same[0]) if same else (None, None)
        return Outcome("open", r, levels)
    tolerance = LOSSY if sample.is_lossy else LOSSLESS
    return judge(shown, lambda steps: reference(steps, ends).pixels, tolerance, ratio=ratio)


def _outvoted(outcomes: dict[str, Outcome], found: dict[str, NDArray[np.uint8] | str]) -> None:
    """Where what is right was decoded by gdcm, and the two others agree on something else that no
    step explains, they are right, and gdcm's decoder is not."""
    one, other = found["ours"], found["dcmtk"]
    unexplained = all(
        outcomes[reader].verdict == "departs" and not outcomes[reader].departures
        for reader in ("ours", "dcmtk")
    )
    if isinstance(one, str) or isinstance(other, str) or not unexplained:
        return
    agreed = judge(one, lambda _: other, LOSSLESS)
    if agreed.verdict == "right":
        outcomes["ours"], outcomes["dcmtk"] = agreed, agreed
        said = "decodes otherwise than the two others"
        outcomes["gdcm"] = Outcome("departs", *compared(one, other), said=said)


def _ratio(sample: Sample) -> float:
    """Height of a pixel to its width where it is to be shown so, else 1."""
    try:
        ratio = pixel_ratio(sample.header)
    except (ValueError, TypeError, ZeroDivisionError):
        return 1.0
    shown = 1 / _MAX_RATIO <= ratio <= _MAX_RATIO and abs(ratio - 1) > 0.01
    return ratio if shown else 1.0


def _with_proportions(outcome: Outcome, sample: Sample, isolated: Isolated) -> Outcome:
    """The outcome, unless what we keep of the file shows its pixels as if they were square."""
    held = isolated(our_proportions, sample.path)
    header = sample.header
    right = int(header.Rows) * _ratio(sample) / int(header.Columns)
    if isinstance(held, str) or abs(held / right - 1) <= 0.03:
        return outcome
    said = "shows pixels that are not square as if they were (PS3.3 C.7.6.3.1.7, 10.7.1.3)"
    return Outcome("departs", outcome.r, outcome.levels, said=said)


def compare(samples: Iterable[Sample], scratch: Path) -> list[Judged]:
    """What each reader does with each of the files."""
    with Isolated(_SECONDS, preload=_PRELOAD) as isolated:
        return [judged(sample, isolated, scratch) for sample in samples]


def main() -> None:
    # Loads PyTorch. The processes that decode import this module, and are started again often.
    from bench.machine import write_results

    parser = argparse.ArgumentParser(description="Our pictures beside dcmtk's and gdcm's.")
    parser.add_argument("--count", type=int, default=500, help="files with drawn headers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, action="append", default=[])
    parser.add_argument("--page", type=Path, help="page in which the tables are replaced")
    arguments = parser.parse_args()
    for name, version, way in (
        ("dcmtk", dcmtk_version(), "apt-get install dcmtk"),
        ("gdcm", gdcm_version(), "pip install python-gdcm"),
    ):
        if not version:
            parser.error(f"{name} is not installed; `{way}` installs it")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        samples = chain(
            drawn_samples(arguments.count, arguments.seed, scratch / "drawn"),
            pydicom_samples(),
            *(folder_samples(path, path.name) for path in arguments.folder),
        )
        found = compare(samples, scratch)
    figures = {
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - start, 1),
        "dcmtk": dcmtk_version(),
        "gdcm": gdcm_version(),
        "sources": {
            source: kind_rows([one for one in found if one.source == source])
            for source in dict.fromkeys(one.source for one in found)
        },
        "departures": [
            {
                "file": one.name,
                "source": one.source,
                "reader": reader,
                "r": outcome.r,
                "levels": outcome.levels,
                "why": [step.does for step in outcome.departures] or [outcome.said],
            }
            for one in found
            for reader, outcome in one.outcomes.items()
            if outcome.verdict in ("departs", "choice")
            and (reader == "ours" or not outcome.departures)
        ],
    }
    tables = page_tables(found)
    print(tables)
    print(f"{figures['seconds']} s; {write_results('conformance', figures)}")
    if arguments.page is not None:
        replace_tables(arguments.page, tables)


if __name__ == "__main__":
    main()

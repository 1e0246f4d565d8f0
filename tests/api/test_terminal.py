"""What the command line says of a verdict, and of indexing without a terminal."""

import io
from typing import Any

import pytest
from rich.console import Console

from api.cli.terminal import answer_table, progress_lines
from indexer.pipeline.run import Progress

_EVIDENCE = {
    "precision": "fp32",
    "index_precision": "fp32",
    "rendered_otherwise": 0,
    "rung": "codes",
    "radius": 7,
    "cells": None,
    "cells_in_all": 252,
    "bits": 64,
    "candidates": 134,
    "estimated": False,
    "approximate": False,
    "note": None,
    "model": "6f2d9c0b7a31e5d4",
    "timings_ms": {"encode": 11.2},
}
_MIXED = _EVIDENCE | {"index_precision": "bf16"}
_OLDER = _EVIDENCE | {"rendered_otherwise": 3}
_KNOWN = {
    "verdict": "known",
    "foreign": False,
    "p": 0.41,
    "alpha": 0.03,
    "scores": {"knn": 0.18, "reconstruction": 0.07},
    "p_values": {"knn": 0.205, "reconstruction": 0.63},
    "p_elsewhere": None,
    "level": None,
}
_FOREIGN = _KNOWN | {
    "verdict": "foreign",
    "foreign": True,
    "p": 0.002,
    "p_values": {"knn": 0.001},
}
_UNFAMILIAR = _KNOWN | {"verdict": "unfamiliar", "p": 0.02, "p_elsewhere": 0.3, "level": 0.05}
_REFUSED = _EVIDENCE | {"rung": "none", "radius": None, "candidates": 0}
_CELLS = _EVIDENCE | {"rung": "cells", "radius": None, "cells": 16}
_BOTH = _EVIDENCE | {"radius": 9, "cells": 16}
_DENSE = _EVIDENCE | {"rung": "dense", "radius": None}


def document(ood: object, evidence: object) -> dict[str, Any]:
    return {"hits": [], "ood": ood, "evidence": evidence, "next_page": None}


@pytest.mark.parametrize(
    ("ood", "evidence", "said"),
    [
        (None, _EVIDENCE, ["no OOD verdict", "134 candidates", "within 7 of 64 bits"]),
        (None, _CELLS, ["rung cells: 134 candidates, those in 16 of 252 cells were compared"]),
        (None, _BOTH, ["134 candidates", "within 9 of 64 bits", "in 16 of 252 cells"]),
        (None, _DENSE, ["rung dense: 134 candidates, everything was compared"]),
        (_KNOWN, _EVIDENCE, ["known kind of image (p = 0.410; knn 0.205, reconstruction 0.63)"]),
        (_UNFAMILIAR, _EVIDENCE, ["unfamiliar: a known kind of image", "p = 0.0200 ≤ 0.05"]),
        (_FOREIGN, _EVIDENCE, ["FOREIGN", "p = 0.0020 ≤ 0.03; knn 0.001", "do not trust"]),
        (_KNOWN, _MIXED, ["encoded in fp32, the index in bf16: similarities may be off by 0.01"]),
        (_KNOWN, _OLDER, ["3 hits were rendered by another version; `precedent index --again`"]),
        (_FOREIGN, _REFUSED, ["FOREIGN", "nothing was searched", "refused", "search.ood_policy"]),
    ],
)
def test_the_verdict_is_told_with_its_reasons(ood, evidence, said) -> None:
    table = answer_table("scan.dcm", document(ood, evidence))
    for text in said:
        assert text in str(table.caption)
    if evidence is _REFUSED:
        assert "trust" not in str(table.caption)
        assert "compared" not in str(table.caption)


def test_without_a_terminal_there_is_a_line_every_thirty_seconds() -> None:
    out = io.StringIO()
    now = 0.0
    show = progress_lines(Console(file=out, width=200), clock=lambda: now)
    for second in range(101):
        now = float(second)
        if second < 40:
            show(Progress("discover", 1000 * second, 0, 0, 0))
        else:
            show(Progress("index", 40_000, 100 * (second - 40), 0, second))
    assert out.getvalue().splitlines() == [
        "looking for files: 30,000 so far",
        "indexing: 2,000 of 40,000 (5%), 100/s, 60 refused, 0:06:20 left",
        "indexing: 5,000 of 40,000 (12%), 100/s, 90 refused, 0:05:50 left",
    ]

"""A validator of FHIR R4 that has nothing to do with what writes it: FHIR.js, of npm.

It checks, by the definitions of R4 (4.0.1), which members there are, how often each may and has to
be there, the types of their values, and codes of value sets that are required (as ``status`` and
``type``). It does not check: codes of DICOM's value sets and of others that it does not have
(``modality``), the form of dates, UIDs, ids and addresses, numbers below 0, invariants (as bdl-2,
that only searches have scores), references, and that addresses and ids fit. ``fhir.resources``
checks some of these (dates, ids, empty values), and the tests check the rest.
"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.node import installed

__all__ = ["fhir_findings"]

_FOLDER = Path(__file__).parent / "fhir"


def fhir_findings(resources: Sequence[Any]) -> list[list[str]]:
    """Of each resource what is wrong with it, as "error ImagingStudy.status: …"; notes that
    something cannot be checked are left out."""
    node = installed(_FOLDER)
    done = subprocess.run(
        [node, "validate.js"],
        cwd=_FOLDER,
        input=json.dumps(resources),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [
        [
            f"{one['severity']} {one['location']}: {one['message']}"
            for one in found
            if one["severity"] != "info"
        ]
        for found in json.loads(done.stdout)
    ]

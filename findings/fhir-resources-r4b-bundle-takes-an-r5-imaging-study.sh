#!/usr/bin/env bash
# fhir.resources 8.3.0: a Bundle of release R4B takes an ImagingStudy of R5, whose JSON it refuses.
#
# Guess: models that validate, of modules that are named for their release, refuse a resource of
# another release: R5's ImagingStudy has a CodeableConcept for the modality, where R4 has a Coding.
# Behaviour: an object of fhir.resources.imagingstudy, which is R5, passes as an entry of an R4B
# Bundle. What is written is no R4: the same Bundle refuses its own JSON. Who does not read the JSON
# back sends it.
# Output seen:
#   written: {"coding": [{"code": "CT"}]}
#   read back: ValidationError at entry.0.resource.series.0.modality.coding
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "fhir.resources==8.3.0" "pydantic==2.14.4"
"$work/venv/bin/python" - <<'PYTHON' | tee "$work/seen"
import json

from fhir.resources.R4B.bundle import Bundle, BundleEntry
from fhir.resources.imagingstudy import ImagingStudy
from pydantic import ValidationError

study = ImagingStudy(
    status="available",
    subject={"display": "not known"},
    series=[{"uid": "1.2.3", "modality": {"coding": [{"code": "CT"}]}}],
)
bundle = Bundle(type="collection", entry=[BundleEntry(resource=study)])
written = json.loads(bundle.model_dump_json())
print("written:", json.dumps(written["entry"][0]["resource"]["series"][0]["modality"]))
try:
    Bundle(**written)
    print("read back")
except ValidationError as error:
    place = ".".join(str(part) for part in error.errors()[0]["loc"])
    print(f"read back: {type(error).__name__} at {place}")
PYTHON
diff "$work/seen" - <<'SEEN'
written: {"coding": [{"code": "CT"}]}
read back: ValidationError at entry.0.resource.series.0.modality.coding
SEEN

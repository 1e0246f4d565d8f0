"""Checks of the model: its files are whole, and its gate is calibrated, for it and lately."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

from engine.errors import ModelError
from engine.model.manifest import MANIFEST, SHIPPED, WEIGHTS, fingerprint_of, read_manifest
from engine.ood.calibration import CALIBRATION, OodGate
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, Level, parted

__all__ = ["check_calibration", "check_model"]

_OLD_DAYS = 365
_MANY = 1000
"""With so many images an archive has enough to calibrate on."""
_AGAIN = "calibrate on this archive with `precedent calibrate`"


def check_model(examined: Examined) -> Iterator[Finding]:
    """Whether manifest and weights are there, and of one training."""
    folder = examined.model_folder
    thing = f"model {folder}"
    try:
        manifest = read_manifest(folder)
        with (folder / WEIGHTS).open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
    except ModelError as error:
        yield Finding("model", "error", thing, *parted(error, "restore the folder"))
        return
    except OSError as error:
        yield Finding(
            "model", "error", thing, f"{WEIGHTS} cannot be read ({error.strerror})",
            "restore the file, or let the user of the service read it",
        )  # fmt: skip
        return
    expected = fingerprint_of(digest, manifest.network, manifest.preprocess)
    if (digest, expected) != (manifest.weights_sha256, manifest.fingerprint):
        yield Finding(
            "model",
            "error",
            thing,
            f"{WEIGHTS} (sha256 {digest[:12]}…) is not what {MANIFEST} describes "
            f"({manifest.weights_sha256[:12]}…)",
            "restore both files from one training",
        )
        return
    told = f"{manifest.fingerprint}, {manifest.network.tower.name}, {manifest.bits} bits"
    yield Finding("model", "ok", thing, told)


def check_calibration(examined: Examined) -> Iterator[Finding]:
    """Whether queries are judged, by a gate for this model that is not too old."""
    manifest = examined.manifest
    if manifest is None:
        return  # told by the check of the model
    path = examined.model_folder / CALIBRATION
    thing = f"calibration {path}"
    if not path.is_file():
        yield Finding(
            "calibration",
            "warning",
            thing,
            "there is none: no query is ever called foreign",
            _AGAIN,
        )
        return
    try:
        gate = OodGate.load(examined.model_folder, manifest.fingerprint)
    except ModelError as error:
        yield Finding("calibration", "error", thing, *parted(error, _AGAIN))
        return
    if gate is None:
        return
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    age = (examined.clock() - made).days
    told = f"{gate.images:,} images, α = {gate.alpha:g}, file of {made:%Y-%m-%d}"
    if examined.model_folder == SHIPPED:
        # The date is that of the installation.
        _, points = examined.index
        level: Level = "warning" if (points or 0) >= _MANY else "ok"
        told = f"{gate.images:,} images of public collections, α = {gate.alpha:g}"
        told += "; scanners that are not in these may be called foreign"
        yield Finding("calibration", level, thing, told, _AGAIN if level == "warning" else "")
    elif age > _OLD_DAYS:
        yield Finding(
            "calibration",
            "warning",
            thing,
            f"{told}, {age:,} days ago: scanners and protocols may have changed since",
            f"look at the drift, and {_AGAIN}",
        )
    else:
        yield Finding("calibration", "ok", thing, told)

"""``precedent calibrate``: fits the OOD gate of a model to images of known kinds."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from api.cli.options import check_writable
from engine.errors import ModelError
from engine.settings import load_settings

if TYPE_CHECKING:
    from engine.model.encoder import Encoder
    from engine.ood.calibration import OodGate

__all__ = ["calibrate"]


def calibrate(
    known: Annotated[
        Path,
        typer.Argument(
            help="Known images: those the model was trained on or, with no second folder, an "
            "archive, of which one half is the reference and one for calibration."
        ),
    ],
    calibration: Annotated[
        Path | None,
        typer.Argument(help="Known images that the model was not trained on."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a checkpoint. [PRECEDENT_MODEL]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a copy of the model; left out, the model itself changes."),
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option(
            help="One or more, judged together, as in 'knn,appearance'; left out, those of the "
            "gate that the model has, or knn and appearance."
        ),
    ] = None,
    references: Annotated[int, typer.Option(min=1, help="Reference images to keep.")] = 4096,
    alpha: Annotated[
        float, typer.Option(help="Share of known images that may be called foreign.")
    ] = 0.03,
    catch: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Refuse to write a gate that catches less of any kind of drawn picture; 0: do not "
            "look.",
        ),
    ] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Write it nevertheless.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed, another draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Teach a model's OOD gate which images are known, so that it can call others foreign.

    A single folder is split into two halves, reference and calibration, by patient (by study where
    no patient is named); both get about as many images of each modality and body part. An image
    that is not DICOM counts as a patient of its own: if some of them belong to one patient, give
    two folders. Of two folders, calibration images whose patient or file is in the reference too
    are left out.

    It says what the new gate catches of drawn documents, noise and scenes, beside the gate that it
    replaces, and which share of the archive's own images it would call foreign. Both should be
    looked at: an archive with documents among its images makes a gate that knows documents.
    """
    from api.cli.gate_fitting import DEFAULT, check_enough, fitted_gate
    from api.cli.known_images import drawn, files_of, observe
    from engine.ood.detectors import detector_kind
    from indexer.datadir.models import model_directory
    from indexer.encoders import load_encoder

    settings = load_settings(model=model)
    directory = model_directory(settings)
    target = _target(directory, out)
    check_writable(target, "--out" if out is not None else "--model")
    before = _gate_of(directory)
    if detectors is None and before is not None:
        names = [detector.name for detector in before.detectors]
    else:
        names = [name.strip() for name in (detectors or DEFAULT).split(",")]
    kinds = [detector_kind(name) for name in names]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"detector {name!r} is named more than once; name each once")
    encoder = load_encoder(directory, settings)
    if encoder.decoder_fingerprint is None and any("reconstruction" in k.needs for k in kinds):
        raise ModelError(
            "detector 'reconstruction' looks at what a decoder makes of the image, and "
            f"{directory} has none; train a decoder for this model, or leave this detector out"
        )
    refused: Counter[str] = Counter()
    left_out = 0
    if calibration is None:
        files = files_of(known)
        check_enough(known, len(files) // 2, alpha)
        archive = observe(encoder, settings, drawn(files, 2 * references, seed), refused)
        reference, held_out = archive.split(seed)
    else:
        files = files_of(calibration)
        check_enough(calibration, len(files), alpha)
        chosen = drawn(files_of(known), references, seed)
        reference = observe(encoder, settings, chosen, refused)
        given = observe(encoder, settings, files, refused)
        held_out = given.without_owners_of(reference)
        left_out = len(given) - len(held_out)
    check_enough(calibration or known, len(held_out), alpha, left_out)
    fitted = fitted_gate(
        encoder,
        kinds,
        before,
        reference,
        held_out,
        named=str(known),
        alpha=alpha,
        catch=catch,
        force=force,
        seed=seed,
    )
    _write_gate(fitted.gate, encoder, directory, target)
    document = {
        "model": encoder.manifest.fingerprint,
        "out": str(target),
        **fitted.to_dict(),
        "left_out": left_out,
        "refused": dict(sorted(refused.items())),
    }
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    Console().print(
        f"calibrated {target} ({', '.join(names)}) on {len(held_out):,} images, with "
        f"{len(reference):,} others as reference; {refused.total():,} files refused, "
        f"{left_out:,} images left out because the reference has their patient or file",
        highlight=False,
        soft_wrap=True,
    )
    for line in fitted.lines():
        Console().print(line, highlight=False)


def _gate_of(directory: Path) -> "OodGate | None":
    """The gate that the model has; None = it has none that can be read, and gets its first."""
    from engine.model.manifest import read_manifest
    from engine.ood.calibration import OodGate

    try:
        return OodGate.load(directory, read_manifest(directory).fingerprint)
    except ModelError:
        return None


def _target(directory: Path, out: Path | None) -> Path:
    """The folder to write the gate to: ``out``, or else that of the model.

    Raises:
        ModelError: it is part of the installed package, or holds another model.
    """
    from engine.model.manifest import MANIFEST, SHIPPED, read_manifest

    if out is None:
        if directory.resolve() == SHIPPED.resolve():
            raise ModelError(
                f"{directory} is the shipped model, part of the installed package; name a "
                "folder for a copy with --out, and use that with --model"
            )
        return directory
    if (out / MANIFEST).exists():
        there, ours = read_manifest(out).fingerprint, read_manifest(directory).fingerprint
        if there != ours:
            raise ModelError(
                f"{out} holds model {there}, not {ours}; name another folder with --out"
            )
    return out


def _write_gate(gate: "OodGate", encoder: "Encoder", directory: Path, target: Path) -> None:
    """Writes the gate to ``target``, with a copy of the model if that is not the model's folder.

    Raises:
        ModelError: the folder cannot be written to.
    """
    from engine.files import write_atomically
    from engine.model.manifest import checkpoint_files
    from engine.ood.calibration import CALIBRATION

    try:
        target.mkdir(parents=True, exist_ok=True)
        gate.save(target, encoder.manifest.fingerprint, encoder.decoder_fingerprint)
        if target.resolve() != directory.resolve():
            for path in checkpoint_files(directory):
                if path.name != CALIBRATION:
                    write_atomically(target / path.name, path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{target} cannot be written ({error.strerror}); name another folder with --out"
        ) from None

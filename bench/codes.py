"""What codes find of what is nearest by z: the model's, simple ones, last fits of its hash head.

    python -m bench.codes DATA --model DIR [--bits 64 128 256] [--epochs 15] [--judge validation]

DATA has ``manifest.csv`` and ``more/manifest.csv`` (``bench.manifests``). The heads are fitted on
the pictures that the model learned from. The split ``query`` asks the split ``database``, patients
that nobody learned from; options are chosen with ``--judge validation``, where other patients ask
the pictures learned from. z of all of them are computed once and kept, and so is each row.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.held_out import FOLD
from bench.machine import write_results
from bench.manifests import Picture, canvases, leave_out, read_pictures
from bench.runs import SCRATCH
from bench.source_data import Drawn, training_set
from bench.tables import show
from bench.vectors import blown_up
from bench.weights import spread_out
from engine.codes import pack_signs
from engine.evaluation.metrics import average_precision
from engine.evaluation.rankings import rankings
from engine.files import writing_atomically
from engine.model.checkpoint import load_checkpoint
from engine.model.encoder import Encoder
from engine.model.hashing import HashHead
from engine.model.manifest import SHIPPED, WEIGHTS
from engine.records import EncodedImages
from engine.training.code_fit import known_of
from engine.training.codes import CodeFitConfig, codes_of, fitted_head, found_by_codes
from engine.training.peers import PEERS, PeerConfig

PART = 500  # pictures that are encoded, and kept, together
SHARES = (0.01, 0.02)
CANDIDATES = 1000
ARCHIVE, ASKED = 100_000, 300
ITQ_ROUNDS = 50
JUDGES = {"query": (("query",), "database"), "validation": (("validation", "calibration"), "train")}

Hash = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Side:
    """Pictures that ask or are searched. z: float32 (N, D). kinds: str (N,)."""

    z: NDArray[np.float32]
    kinds: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.z)


def encoded(model: Path, pictures: Sequence[Picture]) -> Side:
    """z of pictures; each is computed once and kept, so that a run that was stopped goes on."""
    weights = hashlib.sha256((model / WEIGHTS).read_bytes()).hexdigest()[:16]
    path = SCRATCH / "codes" / f"{weights}.npz"
    known: dict[str, NDArray[np.float32]] = {}
    if path.is_file():
        with np.load(path) as kept:
            known = dict(zip(kept["paths"].tolist(), kept["z"], strict=True))
    missing = [one for one in pictures if str(one.path) not in known]
    encoder = Encoder.load(model) if missing else None
    for start in range(0, len(missing), PART):
        assert encoder is not None
        part = missing[start : start + PART]
        z = encoder.encode(list(canvases(part, encoder.manifest.preprocess))).z
        known |= zip((str(one.path) for one in part), z, strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_atomically(path) as stream:
            np.savez(stream, paths=list(known), z=np.stack(list(known.values())))
        print(f"{start + len(part)} of {len(missing)} encoded", file=sys.stderr)
    return Side(
        np.stack([known[str(one.path)] for one in pictures]),
        np.array([one.kind for one in pictures]),
    )


def hyperplanes(bits: int, learned: NDArray[np.float32]) -> Hash:
    """Random hyperplanes through the mean (Charikar, STOC 2002)."""
    planes = np.random.default_rng(0).normal(size=(learned.shape[1], bits)).astype(np.float32)
    mean = learned.mean(axis=0)
    return lambda z: pack_signs((z - mean) @ planes)


def principal_signs(bits: int, learned: NDArray[np.float32]) -> Hash:
    """On which side of the mean an image lies along each of the largest principal axes."""
    mean, axes = _principal(bits, learned)
    return lambda z: pack_signs((z - mean) @ axes)


def rotated(bits: int, learned: NDArray[np.float32]) -> Hash:
    """Iterative quantisation (Gong & Lazebnik, CVPR 2011): the same, rotated to the least error."""
    mean, axes = _principal(bits, learned)
    projected = (learned - mean) @ axes
    drawn = np.random.default_rng(0).normal(size=(bits, bits))
    rotation = np.linalg.qr(drawn)[0].astype(np.float32)
    for _ in range(ITQ_ROUNDS):
        signs = np.where(projected @ rotation >= 0, 1, -1).astype(np.float32)
        left, _, right = np.linalg.svd(signs.T @ projected)
        rotation = (left @ right).T
    return lambda z: pack_signs((z - mean) @ axes @ rotation)


def _principal(
    bits: int, learned: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mean = learned.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((learned - mean).T))
    return mean, axes[:, ::-1][:, :bits].astype(np.float32)


SIMPLE = {"hyperplanes": hyperplanes, "signs of PCA": principal_signs, "ITQ": rotated}


def fits(epochs: int) -> dict[str, CodeFitConfig]:
    """The last fits that are compared, ours first."""
    ours = CodeFitConfig(epochs=epochs)
    alone = replace(ours, neighbours=0.0, independence=0.0)
    return {
        "last fit": ours,
        "last fit, neighbours alone": replace(ours, loss=replace(ours.loss, pairs=0.0)),
        "last fit, SCH": alone,
        **{f"last fit, {peer}": replace(alone, loss=PeerConfig(peer)) for peer in PEERS},
    }


def figures(codes: Hash, asked: Side, held: Side, archive: NDArray[np.float32]) -> dict[str, Any]:
    """What the codes find of the ten nearest by z, and how they rank by kind on their own."""
    asking = codes(asked.z)
    held_codes = codes(held.z)
    row: dict[str, Any] = {}
    for share in SHARES:
        shares = found_by_codes((asked.z, asking), (held.z, held_codes), round(share * len(held)))
        row[f"in {share:.0%}"] = round(float(shares.mean()), 4)
        if share == SHARES[0]:
            of_kind = [shares[asked.kinds == kind].mean() for kind in np.unique(asked.kinds)]
            row["worst kind"] = round(float(min(of_kind)), 4)
    chosen = np.random.default_rng(0).permutation(len(asked))[:ASKED]
    many = (archive, codes(archive))
    shares = found_by_codes((asked.z[chosen], asking[chosen]), many, CANDIDATES)
    row[f"in {CANDIDATES} of {len(archive)}"] = round(float(shares.mean()), 4)
    ranking = rankings(
        EncodedImages(asked.z, asking),
        EncodedImages(held.z, held_codes),
        len(held),
        orders=("hamming_random",),
    )["hamming_random"]
    hits = held.kinds[ranking] == asked.kinds[:, None]
    answerable = hits.any(axis=1)
    row["mAP"] = round(float(average_precision(hits[answerable]).mean()), 4)
    row["P@1"] = round(float(hits[answerable, 0].mean()), 4)
    row["distinct codes"] = len(np.unique(held_codes, axis=0))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--epochs", type=int, default=15, help="of each last fit; 0: none")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="rows to make")
    parser.add_argument("--most", type=int, default=8000, help="pictures to fit heads on")
    parser.add_argument("--judge", choices=sorted(JUDGES), default="query")
    arguments = parser.parse_args()
    network, manifest = load_checkpoint(arguments.model)
    every = read_pictures(arguments.folder)
    fold = arguments.model / FOLD
    out_of = json.loads(fold.read_text())["left_out"] if fold.is_file() else []
    kept = leave_out(every, out_of)
    learned = spread_out([one for one in kept if one.part == "train"], arguments.most, 0)
    asking, searched = JUDGES[arguments.judge]
    asked = encoded(arguments.model, [one for one in every if one.part in asking])
    if searched == "train":
        held = encoded(arguments.model, learned)
    else:
        held = encoded(arguments.model, [one for one in every if one.part == searched])
    z = encoded(arguments.model, learned).z
    nothing = Drawn(
        np.zeros((0, manifest.preprocess.size, manifest.preprocess.size), np.uint8),
        (),
        np.zeros(0, np.int64),
    )
    known = known_of(z, training_set(learned, nothing, manifest.preprocess))
    archive, _ = blown_up(held.z, held.kinds, ARCHIVE, np.random.default_rng(0))
    rows: list[dict[str, Any]] = []
    kept_rows = SCRATCH / "codes" / "rows"
    kept_rows.mkdir(parents=True, exist_ok=True)

    def add(method: str, bits: int, made: Callable[[], Hash], decides: object = None) -> None:
        """A row, made now or kept from before."""
        if arguments.only and method not in arguments.only:
            return
        told = repr((method, bits, decides, manifest.fingerprint, arguments.judge, len(known)))
        path = kept_rows / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
        if not path.is_file():
            found = figures(made(), asked, held, archive)
            path.write_text(json.dumps({"method": method, "bits": bits, **found}))
        rows.append(json.loads(path.read_text()))
        print(rows[-1], file=sys.stderr)

    add("the model", manifest.bits, lambda: hashed(network.head))
    for bits in arguments.bits:
        for name, simple in SIMPLE.items():
            if bits <= z.shape[1]:
                add(name, bits, lambda simple=simple, bits=bits: simple(bits, z))  # type: ignore[misc]
    start = (network.head, None)
    for name, config in fits(arguments.epochs).items() if arguments.epochs else ():
        for bits in arguments.bits:
            chosen = replace(config, bits=bits)

            def fit(chosen: CodeFitConfig = chosen) -> Hash:
                return hashed(fitted_head(known, manifest.network.head, chosen, start).head)

            add(name, bits, fit, chosen)
    title = f"model {manifest.fingerprint}: {len(asked)} ask {len(held)}"
    show(Console(width=140), title, rows, list(rows[0]))
    told = {"asked": len(asked), "held": len(held), "fitted_on": len(known)}
    name = "codes" if arguments.judge == "query" else f"codes-{arguments.judge}"
    print(write_results(name, {"model": manifest.fingerprint, **told, "rows": rows}))


def hashed(head: HashHead) -> Hash:
    """The codes of a head."""
    return lambda z: codes_of(head, z)


if __name__ == "__main__":
    main()

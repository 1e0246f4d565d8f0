"""The vectors for the search benchmark, and their exact nearest neighbours.

``synthetic`` vectors need no data: they are drawn as classes, clusters within these (a study, a
patient, a protocol) and images around the clusters. ``real`` vectors are a model's encodings of a
folder of images; if more are asked for than there are images, further vectors are drawn near these.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.collection import Collection
from engine.codes import pack_signs
from engine.model.checkpoint import load_checkpoint
from engine.model.encoder import Encoder, centre_and_normalise
from engine.model.manifest import SHIPPED
from engine.records import ImageRecord, Point, dicom_point_id

__all__ = [
    "KINDS",
    "SCRATCH",
    "Vectors",
    "blown_up",
    "nearest",
    "points",
    "prepared",
    "real",
    "recall",
    "row_of",
    "synthetic",
]

KINDS = ("synthetic", "collapsed", "real")
SCRATCH = Path(__file__).parent / ".scratch"
DEEPEST = 100
"""Number of exact neighbours that are computed for each query."""
_VERSION = 1  # of how vectors are made: a new number makes all cached vectors and results invalid
_DIM, _BITS = 256, 64
_CHUNK = 16_384  # rows made at once: 16 MB of z, however many there are in all

_CLASSES = 16  # as many body regions times modalities as a general archive has
_IN_CLUSTER = 50  # mean; with the archive grows the number of its studies, not their size
_TAIL = 1.5  # Pareto exponent of cluster sizes: a few protocols fill much of an archive
_LATENT, _DECAY = 32, 0.5  # axes images of a class vary along, and how fast those shrink:
# about eight count, as in the shipped model's encodings of one class
_BETWEEN, _WITHIN = 1.0, 0.35  # length of a cluster's way from its class, of an image's from
# its cluster; the class itself is 1. Images of a class are then 0.5 alike, of a cluster 0.9
_NOISE = 0.05  # in all 256 directions: no two images lie in one plane exactly
_CLASS_SHARE = 1.0  # of a class in the hash logits, where z has standard deviation 1: codes
# tell classes apart, and half of their bits still tell images of a class apart

_INDEXED_AT = "2025-01-01T00:00:00Z"
_SAMPLED = 3000  # images whose nearest other one is looked for


@dataclass(frozen=True, eq=False)
class Vectors:
    """The encodings of an archive, and of queries that are not in it.

    z, query_z: float32 (N, 256) and (Q, 256), centred per row and of unit length.
    codes, query_codes: uint8 (N, 8) and (Q, 8), packed.
    classes: str (N,).
    """

    name: str
    z: NDArray[np.float32]
    codes: NDArray[np.uint8]
    classes: NDArray[np.str_]
    query_z: NDArray[np.float32]
    query_codes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.z)

    def save(self, folder: Path) -> None:
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "name").write_text(self.name)

    @classmethod
    def opened(cls, folder: Path) -> "Vectors":
        """Opens saved vectors; z is memory-mapped."""
        arrays = {name: np.load(folder / f"{name}.npy") for name in _ARRAYS if name != "z"}
        z = np.asarray(np.load(folder / "z.npy", mmap_mode="r"))
        return cls(name=(folder / "name").read_text(), z=z, **arrays)


_ARRAYS = ("z", "codes", "classes", "query_z", "query_codes")


def synthetic(count: int, queries: int, seed: int = 0, *, collapsed: bool = False) -> Vectors:
    """Draws the vectors of a synthetic archive; the same seed gives the same vectors.

    collapsed: all images of a class have one code, as a model gives them that was trained to the
        end to tell classes apart.
    """
    rng = np.random.default_rng(seed)
    clusters = max(_CLASSES, count // _IN_CLUSTER)
    weights = rng.pareto(_TAIL, clusters) + 1
    steps = np.cumsum(weights / weights.sum())
    class_of = rng.integers(0, _CLASSES, clusters)
    centres = centre_and_normalise(rng.normal(size=(_CLASSES, _DIM)).astype(np.float32))
    axes = np.stack([np.linalg.qr(rng.normal(size=(_DIM, _LATENT)))[0].T for _ in centres])
    spread = np.arange(1, _LATENT + 1) ** -_DECAY
    axes = (axes * (spread / np.linalg.norm(spread))[:, None]).astype(np.float32)
    ways = _BETWEEN * rng.normal(size=(clusters, _LATENT)).astype(np.float32)
    planes = rng.normal(size=(_DIM, _BITS)).astype(np.float32)
    sides = _CLASS_SHARE * rng.choice([-1, 1], (_CLASSES, _BITS)).astype(np.float32)

    def drawn(
        rows: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.str_]]:
        z = np.empty((rows, _DIM), np.float32)
        codes = np.empty((rows, _BITS // 8), np.uint8)
        classes = np.empty(rows, np.int64)
        for part in _chunks(rows):
            cluster = np.minimum(np.searchsorted(steps, rng.random(len(z[part]))), clusters - 1)
            classes[part] = label = class_of[cluster]
            at = ways[cluster] + _WITHIN * rng.normal(size=(len(cluster), _LATENT))
            noise = _NOISE / np.sqrt(_DIM) * rng.normal(size=(len(cluster), _DIM))
            x = centres[label] + noise.astype(np.float32)
            for one in range(_CLASSES):
                x[label == one] += at[label == one].astype(np.float32) @ axes[one]
            z[part] = centre_and_normalise(x)
            told = centres[label] if collapsed else z[part]
            codes[part] = pack_signs(told @ planes + sides[label])
        return z, codes, np.array([f"class {one:02d}" for one in range(_CLASSES)])[classes]

    asked_z, asked_codes, _ = drawn(queries)
    name = "collapsed" if collapsed else "synthetic"
    return Vectors(f"{name}, {count:,}", *drawn(count), asked_z, asked_codes)


def real(
    folder: Path,
    count: int,
    queries: int,
    seed: int = 0,
    *,
    model: Path = SHIPPED,
    scratch: Path = SCRATCH,
) -> Vectors:
    """The model's encodings of the images in ``folder``, which ``bench.collection`` describes.

    The archive is the splits train and database: a random part of them, or, if ``count`` is larger,
    vectors drawn near those of random images. Each of these is as far from its image as a random
    image is from its nearest other one, in the direction in which two random images of its class
    differ; its code is the model's hash of it. The queries are the split query, unchanged.
    """
    encodings = _encodings(folder, model, scratch)
    rng = np.random.default_rng(seed)
    asked = rng.permutation(len(encodings["query_z"]))[:queries]
    z, codes, classes = (
        np.concatenate([encodings[f"{split}_{part}"] for split in ("train", "database")])
        for part in ("z", "codes", "classes")
    )
    if count <= len(z):
        chosen = rng.permutation(len(z))[:count]
        archive = z[chosen], codes[chosen], classes[chosen]
    else:
        blown, source = blown_up(z, classes, count, rng)
        archive = blown, _hashed(blown, model), classes[source]
    return Vectors(
        f"real, {count:,}", *archive, encodings["query_z"][asked], encodings["query_codes"][asked]
    )


def _encodings(folder: Path, model: Path, scratch: Path) -> dict[str, NDArray]:
    """z, codes and classes of three splits, encoded now or cached."""
    path = scratch / f"encodings-{identity('real', folder, model)}.npz"
    if not path.exists():
        encoder = Encoder.load(model, batch_size=64)
        collection = Collection(folder, encoder.manifest.preprocess)
        arrays: dict[str, NDArray] = {}
        for split in ("train", "database", "query"):
            images = encoder.encode(list(collection[split].canvases))
            arrays |= {f"{split}_z": images.z, f"{split}_codes": images.codes}
            arrays[f"{split}_classes"] = collection[split].classes
        scratch.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **arrays)
        part.replace(path)
    with np.load(path) as stored:
        return dict(stored)


def identity(kind: str, folder: Path | None, model: Path = SHIPPED) -> str:
    """16 hex digits of a hash of what the vectors depend on, besides count and seed."""
    decides: list[object] = [kind, _VERSION]
    if kind == "real" and folder is not None:
        manifest = json.loads((model / "manifest.json").read_text())
        images = hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
        decides += [manifest["fingerprint"], images]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def blown_up(
    z: NDArray[np.float32], classes: NDArray[np.str_], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """``count`` vectors beside random rows of z, and which rows those are."""
    similarities = _to_nearest_other(z, rng)
    by_class = np.argsort(classes, kind="stable")
    first = np.searchsorted(classes[by_class], classes, side="left")
    size = np.searchsorted(classes[by_class], classes, side="right") - first
    source = rng.integers(0, len(z), count)
    blown = np.empty((count, z.shape[1]), np.float32)
    for part in _chunks(count):
        rows = source[part]
        one = rng.integers(0, size[rows])
        other = (one + rng.integers(1, np.maximum(size[rows], 2))) % size[rows]
        base = z[rows]
        way = z[by_class[first[rows] + one]] - z[by_class[first[rows] + other]]
        way -= (way * base).sum(axis=1, keepdims=True) * base
        way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
        c = rng.choice(similarities, len(rows))[:, None]
        blown[part] = centre_and_normalise(c * base + np.sqrt(1 - c * c) * way)
    return blown, source


def _to_nearest_other(z: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Similarity of some random rows to the row nearest to each, in [-1, 1]."""
    sampled = rng.permutation(len(z))[:_SAMPLED]
    found = [
        nearest_similarity
        for start in range(0, len(sampled), 500)
        for nearest_similarity in _greatest_but_own(z, sampled[start : start + 500])
    ]
    return np.clip(np.array(found, np.float32), -1, 1)


def _greatest_but_own(z: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
    similarity = z[rows] @ z.T
    similarity[np.arange(len(rows)), rows] = -1
    return similarity.max(axis=1)


@torch.inference_mode()
def _hashed(z: NDArray[np.float32], model: Path) -> NDArray[np.uint8]:
    """The model's codes of blended features. Its head normalises what it is given, so that
    centred rows of unit length do as well as the features themselves."""
    head = load_checkpoint(model)[0].head
    codes = np.empty((len(z), _BITS // 8), np.uint8)
    for part in _chunks(len(z)):
        codes[part] = pack_signs(head(torch.from_numpy(z[part]))[1].numpy())
    return codes


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, rows)) for start in range(0, rows, _CHUNK))


def points(vectors: Vectors, rows: Sequence[int], *, copy: int = 0) -> list[Point]:
    """The archive's images as the indexer would store them; other ids for another ``copy``.

    Studies have some two dozen images of one class, patients a few studies; what else a
    payload tells goes by study, and is drawn from as many values as archives have.
    """
    found = []
    for row in rows:
        label = str(vectors.classes[row])
        drawn = hashlib.sha256(f"{label}, study {row // 384}".encode()).digest()
        patient = hashlib.sha256(f"{label}, patient {row // 1024}".encode()).hexdigest()[:32]
        study = f"1.2.826.0.1.3680043.8.498.{int.from_bytes(drawn[:12], 'big')}"
        series = f"{study}.{1 + row % 2}"
        sop = f"{series}.{copy}.{row}"
        record = ImageRecord(
            study=study,
            series=series,
            sop=sop,
            patient=patient,
            modality=("CT", "MR", "CR", "DX", "MG", "US")[sum(label.encode()) % 6],
            body_part=label.upper(),
            view=("AP", "PA", "LL", None)[drawn[12] % 4],
            laterality=("L", "R", None, None)[drawn[13] % 4],
            manufacturer=f"maker {drawn[14] % 8}",
            sex="FM"[drawn[15] % 2],
            age_band=f"{drawn[16] % 9}0-{drawn[16] % 9}9",
            study_year=2005 + drawn[17] % 20,
            labels=(label,),
            source=f"station {drawn[18] % 12}",
            burned_in=drawn[19] < 8,
        )
        z = np.asarray(vectors.z[row])
        found.append(
            Point(dicom_point_id(sop, 0), record, vectors.codes[row], z, indexed_at=_INDEXED_AT)
        )
    return found


def row_of(record: ImageRecord) -> int:
    """The row in the archive's arrays of an image that :func:`points` made."""
    return int((record.sop or "").rpartition(".")[2])


def nearest(z: NDArray[np.float32], asked: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The rows of z most similar to each query vector, by comparing with all of them.

    Returns:
        int64 (Q, min(k, N)), most similar first, equals by row.
    """
    rows = np.empty((len(asked), 0), np.int64)
    best = np.empty((len(asked), 0), np.float32)
    for part in _chunks(len(z)):
        here = np.broadcast_to(
            np.arange(part.start, part.stop), (len(asked), part.stop - part.start)
        )
        best = np.concatenate([best, asked @ z[part].T], axis=1)
        rows = np.concatenate([rows, here], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    return rows


def recall(found: list[NDArray[np.int64]], exact: NDArray[np.int64], k: int) -> float:
    """recall@k: the share of the k exact neighbours among the first k found, mean over queries.

    found: for each query the rows found, most similar first.
    exact: int64 (Q, n), the exact neighbours, n ≥ k unless there are fewer items.
    """
    shares = [
        len(np.intersect1d(rows[:k], truth[:k])) / len(truth[:k])
        for rows, truth in zip(found, exact, strict=True)
    ]
    return float(np.mean(shares))


def prepared(
    kind: str,
    count: int,
    queries: int,
    *,
    data: Path | None = None,
    seed: int = 0,
    scratch: Path = SCRATCH,
) -> Path:
    """A folder with these vectors for :meth:`Vectors.opened`, made now or cached.

    It also holds ``exact.npy``, the exact neighbours of each query, int64 (Q, 100).
    """
    folder = scratch / f"vectors-{kind}-{count}-{queries}-{seed}-{identity(kind, data)}"
    if folder.exists():
        return folder
    if kind == "real":
        if data is None:
            raise SystemExit("kind 'real' needs a folder with images; name one, or leave it out")
        vectors = real(data, count, queries, seed, scratch=scratch)
    else:
        vectors = synthetic(count, queries, seed, collapsed=kind == "collapsed")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    vectors.save(part)
    np.save(part / "exact.npy", nearest(vectors.z, vectors.query_z, DEEPEST))
    part.rename(folder)
    return folder

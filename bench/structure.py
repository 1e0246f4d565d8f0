"""Measures how much structure within a class the codes keep, beyond the labels of their training.

Codes that gather around class centres cannot tell which images of one class are similar; this is
the paper's argument against them. It is measured by three properties that were not used in
training.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from bench.collection import Part
from engine.evaluation.metrics import average_precision
from engine.evaluation.rankings import rankings
from engine.model.encoder import Encoder, canvas_tensor
from engine.records import EncodedImages
from engine.training.fingerprint import image_fingerprint, structural_similarity

__all__ = ["structure_kept"]

_ORDERS = ("hamming_random", "content")


def structure_kept(encoder: Encoder, database: Part, queries: Part) -> dict[str, float]:
    """The measures in the orders "hamming_random" (the codes alone) and "content":

    knee grade: mAP@100 of the Kellgren–Lawrence grade, knee queries against knees.
    same patient: mAP@100 of the patient's other images, cardiac MR of the database against
        each other.
    fingerprint: mean Pearson correlation of the 16 × 16 thumbnails of a query and its first
        ten hits, within the query's class, averaged over classes.
    """
    found: dict[str, float] = {}
    knees, knee_queries = database.only(["KneeXR"]), queries.only(["KneeXR"])
    hearts = database.only(["CardiacMR"])
    held, asked = _encode(encoder, knees), _encode(encoder, knee_queries)
    patients = _encode(encoder, hearts)
    for order in _ORDERS:
        ranking = rankings(asked, held, 100, orders=(order,))[order]
        found[f"knee grade, {order}"] = _map(ranking, knee_queries.subclasses, knees.subclasses)

        def itself(rows: slice) -> NDArray[np.bool_]:
            return np.eye(len(hearts), dtype=np.bool_)[rows]

        ranking = rankings(patients, patients, 100, orders=(order,), leave_out=itself)[order]
        found[f"same patient, {order}"] = _map(
            ranking, hearts.groups, hearts.groups, itself_left_out=True
        )
        alike = [
            _alike(encoder, database.only([name]), queries.only([name]), order)
            for name in np.unique(queries.classes).tolist()
        ]
        found[f"fingerprint, {order}"] = float(np.mean(alike))
    return {name: round(value, 5) for name, value in found.items()}


def _encode(encoder: Encoder, part: Part) -> EncodedImages:
    return encoder.encode(list(part.canvases))


def _map(
    ranking: NDArray[np.int64],
    asked: NDArray[np.str_],
    held: NDArray[np.str_],
    *,
    itself_left_out: bool = False,
) -> float:
    hits = (held[ranking] == asked[:, None]) & (ranking >= 0)
    relevant = (asked[:, None] == held[None]).sum(axis=1) - int(itself_left_out)
    scores = average_precision(hits, relevant)
    return float(scores[relevant > 0].mean())


def _alike(encoder: Encoder, database: Part, queries: Part, order: str) -> float:
    held, asked = _encode(encoder, database), _encode(encoder, queries)
    ranking = rankings(asked, held, 10, orders=(order,))[order]
    fingerprints = [image_fingerprint(canvas_tensor(part.canvases)) for part in (queries, database)]
    similarity = structural_similarity(torch.cat(fingerprints), centred=True)
    between = similarity[: len(queries), len(queries) :].numpy()
    return float(np.take_along_axis(between, ranking, axis=1).mean())

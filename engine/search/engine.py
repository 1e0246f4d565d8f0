"""A search, from the query's picture to the answer with its evidence."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from engine.errors import FingerprintMismatch, ImageNotFound, StoreError
from engine.model.encoder import Encoder
from engine.ood.calibration import OodGate
from engine.records import Answer, Evidence, Hit, OodVerdict, Point
from engine.search.facets import facet_counts
from engine.search.ladder import Climb, Rung, climb
from engine.search.query import Query
from engine.search.ranking import ranked
from engine.settings import SearchSettings
from engine.store.base import Filter, Ids, VectorStore

__all__ = ["SearchEngine"]


class SearchEngine:
    """Answers queries over one store with one model.

    Args:
        encoder: the model; must be the one that the store was filled with.
        store: where the points are.
        settings: how many candidates are enough, and other bounds.
        gate: the OOD gate; None = answers carry no verdict.

    Raises:
        FingerprintMismatch: the store was filled by another model.
    """

    def __init__(
        self,
        encoder: Encoder,
        store: VectorStore,
        settings: SearchSettings,
        gate: OodGate | None = None,
    ) -> None:
        if store.collection.model != encoder.manifest.fingerprint:
            raise FingerprintMismatch(
                f"the index was made by model {store.collection.model}, not by "
                f"{encoder.manifest.fingerprint}; name that model with --model"
            )
        self._encoder = encoder
        self._store = store
        self._settings = settings
        self._gate = gate

    def search(self, canvases: Sequence[NDArray[np.uint8]], query: Query) -> list[Answer]:
        """One answer for each canvas (uint8, as ``Preprocess.canvas`` gives it), in order."""
        watch = _Stopwatch()
        with watch("encode"):
            encoded = self._encoder.encode(canvases)
        shared = {"encode": watch.milliseconds["encode"] / max(len(canvases), 1)}
        return [
            self._answer(z, code, query, _Stopwatch(shared))
            for z, code in zip(encoded.z, encoded.codes, strict=True)
        ]

    def search_like(self, image_id: str, query: Query) -> Answer:
        """The answer for an indexed image; it is itself left out.

        Raises:
            ImageNotFound: no indexed image has this id.
        """
        watch = _Stopwatch()
        with watch("fetch"):
            point = self.image(image_id, with_z=True)
        where = Filter(must=query.where.must, must_not=(*query.where.must_not, Ids((image_id,))))
        if point.z is None:
            raise StoreError(f"image {image_id} is stored without its vector; index it again")
        # Stored as float16: its length is one only nearly.
        z = point.z / np.linalg.norm(point.z)
        narrowed = Query(query.k, where, query.order, query.exact)
        return self._answer(z, point.code, narrowed, watch)

    def image(self, image_id: str, *, with_z: bool = False) -> Point:
        """The indexed image with this id. Raises ImageNotFound."""
        found = self._store.get([image_id], with_z=with_z)
        if not found:
            raise ImageNotFound(
                f"no indexed image has id {image_id!r}; ids are in the answers of a search"
            )
        return found[0]

    def facets(self, where: Filter) -> dict[str, dict[str, int]]:
        """Counts by field value over the images that ``where`` lets pass."""
        return facet_counts(self._store, where, self._settings.facet_values)

    def _answer(
        self,
        z: NDArray[np.float32],
        code: NDArray[np.uint8],
        query: Query,
        watch: "_Stopwatch",
    ) -> Answer:
        with watch("ood"):
            verdict = self._verdict(z)
        with watch("prefilter"):
            taken = self._candidates(code, query)
        with watch("rank"):
            hits, ranked_count = self._hits(z, code, query, taken)
        with watch("facets"):
            facets = self.facets(taken.where)
        evidence = Evidence(
            rung=taken.rung.name,
            radius=taken.rung.radius,
            candidates=taken.candidates,
            ranked=ranked_count,
            rungs_tried=taken.tried,
            order=query.order,
            model=self._store.collection.model,
            bits=self._store.collection.bits,
            timings_ms=watch.rounded(),
        )
        return Answer(tuple(hits), evidence, verdict, facets)

    def _verdict(self, z: NDArray[np.float32]) -> OodVerdict | None:
        return None if self._gate is None else self._gate.verdicts(z[None])[0]

    def _candidates(self, code: NDArray[np.uint8], query: Query) -> Climb:
        if query.exact:
            everything = self._store.count(query.where)
            return Climb(Rung("exact", None, ()), query.where, everything, {"exact": everything})
        settings = self._settings
        enough = max(settings.min_candidates, settings.candidates_per_hit * query.k)
        return climb(self._store, code, query.where, enough)

    def _hits(
        self, z: NDArray[np.float32], code: NDArray[np.uint8], query: Query, taken: Climb
    ) -> tuple[list[Hit], int]:
        """The first k hits, and how many candidates were put into order for them."""
        by_content = query.order == "content"
        wanted = query.k if by_content else max(query.k, self._settings.max_hamming_ranked)
        # The store cuts its list at the limit in any order among equals, so the list has to
        # go on until the last one wanted has no equal left behind.
        limit = wanted + query.k
        while True:
            points = self._store.query(z, taken.where, limit)
            if len(points) < limit or points[wanted - 1].score != points[-1].score:
                break
            limit *= 4
        if not by_content and len(points) > wanted:
            least = points[wanted - 1].score or 0.0
            points = [point for point in points if (point.score or 0.0) >= least]
        return ranked(points, code, query.order)[: query.k], len(points)


class _Stopwatch:
    """Wall-clock milliseconds by stage."""

    def __init__(self, before: dict[str, float] | None = None) -> None:
        self.milliseconds = dict(before or {})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.milliseconds[stage] = (time.perf_counter() - started) * 1000

    def rounded(self) -> dict[str, float]:
        return {stage: round(value, 2) for stage, value in self.milliseconds.items()}

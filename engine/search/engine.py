"""A search, from the query's picture to the answer with its evidence."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from engine.errors import FingerprintMismatch, ImageNotFound, StoreError
from engine.model.encoder import Encoder
from engine.ood.calibration import OodGate
from engine.records import Answer, Evidence, Hit, Observations, OodVerdict, Point
from engine.search.facets import facet_counts
from engine.search.ladder import Climb, Rung, climb
from engine.search.query import Query
from engine.search.ranking import ranked
from engine.settings import SearchSettings
from engine.store.base import Filter, Ids, Nearest, VectorStore

__all__ = ["SearchEngine"]


class SearchEngine:
    """Answers queries over one store with one model.

    Args:
        encoder: the model; must be the one that the store was filled with.
        store: where the points are.
        settings: how many candidates are enough, what becomes of foreign queries.
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
            seen = self._observed(canvases)
        shared = {"encode": watch.milliseconds["encode"] / max(len(canvases), 1)}
        return [
            self._answer(seen[i : i + 1], query, _Stopwatch(shared)) for i in range(len(canvases))
        ]

    def search_like(self, image_id: str, query: Query) -> Answer:
        """The answer for an indexed image; it is itself left out.

        Of an indexed image there are z and code only: the verdict is that of the detectors
        which need no more.

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
        return self._answer(Observations(z[None], point.code[None]), narrowed, watch)

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

    def _observed(self, canvases: Sequence[NDArray[np.uint8]]) -> Observations:
        if self._gate is not None:
            return self._encoder.observe(canvases)
        encoded = self._encoder.encode(canvases)
        return Observations(encoded.z, encoded.codes)

    def _answer(self, seen: Observations, query: Query, watch: "_Stopwatch") -> Answer:
        """seen: of the one query image."""
        z, code = seen.z[0], seen.codes[0]
        with watch("ood"):
            verdict = self._verdict(seen)
        if verdict is not None and verdict.foreign and self._settings.ood_policy == "refuse":
            nothing = Climb(Rung("none", None, ()), query.where, 0, {})
            return Answer((), self._evidence(query, nothing, 0, watch), verdict, {})
        with watch("prefilter"):
            taken = self._candidates(code, query)
        with watch("rank"):
            hits, ranked_count = self._hits(z, code, query, taken)
        with watch("facets"):
            facets = self.facets(taken.where)
        return Answer(
            tuple(hits), self._evidence(query, taken, ranked_count, watch), verdict, facets
        )

    def _evidence(
        self, query: Query, taken: Climb, ranked_count: int, watch: "_Stopwatch"
    ) -> Evidence:
        return Evidence(
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

    def _verdict(self, seen: Observations) -> OodVerdict | None:
        """None without a gate, or when none of its detectors can look at the query."""
        if self._gate is None or not self._gate.detectors_for(seen):
            return None
        return self._gate.verdicts(seen)[0]

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
            points = self._store.query([Nearest(z, taken.where, limit, query.exact)])[0]
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

"""The search engine: from a query image to the answer with its evidence.

A query is encoded, checked by the out-of-distribution (OOD) gate, passed through the coarse filter
(ladder.py), and the most similar candidates are ranked.
"""

from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import FingerprintMismatch, ImageNotFound, StoreError
from engine.model.encoder import Encoder
from engine.model.words import Said
from engine.ood.calibration import OodGate
from engine.records import Answer, Evidence, Hit, ImageRecord, Observations, OodVerdict, Point
from engine.search.alike import AlikeMap, alike_map
from engine.search.by_words import check_query, found_by_words
from engine.search.facets import facet_counts
from engine.search.foresight import look_ahead, look_at_filters
from engine.search.ladder import Climb, Rung, climb, looked_into
from engine.search.placeholders import joined, nobodies, remark_on, remark_on_nothing
from engine.search.query import MAX_K, Cursor, Query, without_own
from engine.search.recommend import Examples, Recommendation, Wanted, recommend
from engine.search.shortlist import best_of_each, first_limit, most_similar, ranked_groups
from engine.search.sizes import Size, size_of
from engine.search.spelling import as_spelled
from engine.search.stopwatch import Stopwatch
from engine.settings import SearchSettings
from engine.store.ahead import AheadStore, asked_ahead
from engine.store.base import Coarse, Filter, Ids, Nearest, VectorStore
from engine.store.counts import Facets

__all__ = ["SearchEngine"]

_WIDER = 4
"""How many times as many candidates are asked for when those that there were gave too few hits."""


class SearchEngine:
    """Answers queries over one store with one model.

    Args:
        encoder: the model; must be the one whose points are in the store.
        store: holds the indexed points.
        settings: limits of the coarse filter and the ranking, and the OOD policy.
        gate: the OOD gate; None = answers have no OOD verdict.
        rendering: version of the reader that makes the pictures of queries; None = not known.
        tells_cells: answers say into how many cells the whole index is divided, which tells its
            size.

    Raises:
        FingerprintMismatch: the store holds points of another model.
    """

    def __init__(
        self,
        encoder: Encoder,
        store: VectorStore,
        settings: SearchSettings,
        gate: OodGate | None = None,
        rendering: str | None = None,
        *,
        tells_cells: bool = True,
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
        self._rendering = rendering
        self._tells_cells = tells_cells

    def over(self, store: VectorStore, *, tells_cells: bool = True) -> "SearchEngine":
        """The same engine over another store."""
        shared = (self._settings, self._gate, self._rendering)
        return SearchEngine(self._encoder, store, *shared, tells_cells=tells_cells)

    @property
    def judges(self) -> bool:
        """Whether answers have OOD verdicts."""
        return self._gate is not None

    @property
    def gate(self) -> OodGate | None:
        """The OOD gate in force; None = there is none."""
        return self._gate

    @property
    def precision(self) -> str:
        """Number format in which queries are encoded, "fp32" or "bf16"."""
        return self._encoder.precision

    def search(
        self,
        canvases: Sequence[NDArray[np.uint8]],
        query: Query,
        own: Sequence[ImageRecord] | None = None,
        colour: Sequence[float] | None = None,
    ) -> list[Answer]:
        """One answer for each query image, in order.

        Args:
            canvases: each uint8 (S, S) or (S, S, 3), as ``Preprocess.canvas`` returns it.
            query: the same for all of them.
            own: for each canvas the record of its file, whose study and patient
                ``query.exclude`` leaves out; None = unknown.
            colour: for each canvas the share of its picture that has a colour, for the OOD verdict;
                None = unknown.
        """
        watch = Stopwatch()
        with watch("encode"):
            seen = self.observed(canvases, colour)
        shared = {"encode": watch.milliseconds["encode"] / max(len(canvases), 1)}
        return [
            self.answer(seen[i : i + 1], query, None if own is None else own[i], shared)
            for i in range(len(canvases))
        ]

    def search_text(self, text: str, query: Query) -> Answer:
        """The images that fit a text best, of a model that knows words.

        All that pass the filters are compared. There is no OOD verdict, no likeness and no Hamming
        distance.

        Raises:
            ModelError: what the model encodes words with is not in its folder.
            QueryError: the model knows no words; the text is empty, too long or has control
                characters; or the query asks for what a text has not: a code, a study or a patient
                of its own.
        """
        check_query(query)
        watch = Stopwatch()
        with watch("encode"):
            said = self._encoder.say(text)
        with asked_ahead(self._store) as store:
            return self._asking(store)._by_words(said, query, watch)

    def _by_words(self, said: Said, query: Query, watch: Stopwatch) -> Answer:
        with watch("rank"):
            hits, taken, remarks = found_by_words(self._store, self._settings, said, query)
        facets = Facets()
        if query.facets:
            with watch("facets"):
                facets = self._facets(taken.where, taken.matching)
        end = query.offset + query.k
        shown = hits[query.offset : end]
        more = len(hits) > end and end + query.k <= MAX_K
        evidence = replace(
            self._evidence(query, taken, len(hits), watch),
            facets_estimated=facets.estimated,
            facets_at_least=facets.at_least,
            note=joined(taken.note, remarks),
            **self._told_of(shown),
        )
        following = str(Cursor(taken.rung.label, end)) if more else None
        return Answer(tuple(shown), evidence, None, facets, following)

    def search_like(self, image_id: str, query: Query) -> Answer:
        """The answer for an indexed image as the query; the image itself is excluded.

        Only the vector and the code of an indexed image are known, so the OOD verdict comes from
        the detectors that need nothing else.

        Raises:
            ImageNotFound: no indexed image has this id.
            StoreError: the image is stored without its vector.
        """
        with asked_ahead(self._store) as store:
            return self._asking(store)._like(image_id, query)

    def _like(self, image_id: str, query: Query) -> Answer:
        watch = Stopwatch()
        others = (*query.where.must_not, Ids((image_id,)))
        narrowed = replace(query, where=replace(query.where, must_not=others))
        likely = None
        with watch("fetch"):
            if isinstance(self._store, AheadStore):
                self._store.get_ahead([image_id], with_z=True)
                look_at_filters(self._store, narrowed)
            point = self.image(image_id, with_z=True)
            if isinstance(self._store, AheadStore):
                likely = self._store.count(narrowed.where, exact=False)
        if point.z is None:
            raise StoreError(f"image {image_id} is stored without its vector; index it again")
        # A server rounds to float16, which changes the length slightly.
        z = point.z / np.linalg.norm(point.z)
        seen = Observations(z[None], point.code[None])
        found = self._answer(seen, narrowed, point.record, watch.milliseconds, likely)
        # Nothing was encoded here: the vector is the index's own.
        made_in = self._store.collection.precision or found.evidence.precision
        return replace(found, evidence=replace(found.evidence, precision=made_in))

    def recommend(self, examples: Examples, wanted: Wanted) -> Recommendation:
        """The images most similar to the liked examples; by default one of each study.

        Raises:
            QueryError: no image of the example study is left to be liked.
            ImageNotFound: an example is not indexed.
        """
        with asked_ahead(self._store) as store:
            found = recommend(store, self._settings, self.verdict, examples, wanted, self._scaled)
        told = self._told_of([one.hit for one in found.hits])
        if examples.seen is not None:
            told["precision"] = self._encoder.precision
        return replace(found, evidence=replace(found.evidence, **told))

    def _told_of(self, hits: Sequence[Hit]) -> dict[str, Any]:
        """Fields of the evidence that say by which versions the hits were rendered."""
        other = sum(hit.rendering != self._rendering for hit in hits)
        known = self._rendering is not None
        return {"rendering": self._rendering, "rendered_otherwise": other if known else 0}

    def image(self, image_id: str, *, with_z: bool = False) -> Point:
        """The indexed image with this id. Raises ImageNotFound."""
        found = self._store.get([image_id], with_z=with_z)
        if not found:
            raise ImageNotFound(
                f"no indexed image has id {image_id!r}; ids are in the answers of a search"
            )
        return found[0]

    def facets(self, where: Filter) -> Facets:
        """Counts by field value over the images that pass ``where``."""
        where, _ = as_spelled(self._store, where)
        return self._facets(where, Size(self._store.count(where, exact=False)))

    def _facets(self, where: Filter, size: Size) -> Facets:
        values, most = self._settings.facet_values, self._settings.max_faceted
        return facet_counts(self._store, where, size, values=values, max_counted=most)

    def observed(
        self, canvases: Sequence[NDArray[np.uint8]], colour: Sequence[float] | None = None
    ) -> Observations:
        """The canvases encoded, with what the OOD gate needs if there is one. colour: as for
        :meth:`search`."""
        if self._gate is not None:
            return self._encoder.observe(canvases, colour)
        encoded = self._encoder.encode(canvases)
        return Observations(encoded.z, encoded.codes)

    def alike_map(self, canvas: NDArray[np.uint8], other: NDArray[np.uint8]) -> AlikeMap:
        """What in a canvas makes it like the other one: 51 canvases are encoded for it.

        Raises:
            ModelError: a canvas is not of the model's size.
        """
        return alike_map(lambda canvases: self._encoder.encode(canvases).z, canvas, other)

    def answer(
        self,
        seen: Observations,
        query: Query,
        own: ImageRecord | None = None,
        timings_ms: dict[str, float] | None = None,
    ) -> Answer:
        """The answer for a query image that has been encoded.

        Args:
            seen: observations of this one image.
            own: record of the query image, for ``query.exclude``; None = unknown.
            timings_ms: wall-clock milliseconds of earlier stages, to be reported with the others.
        """
        with asked_ahead(self._store) as store:
            return self._asking(store)._answer(seen, query, own, timings_ms)

    def _answer(
        self,
        seen: Observations,
        query: Query,
        own: ImageRecord | None,
        timings_ms: dict[str, float] | None,
        likely: int | None = None,
    ) -> Answer:
        """likely: about so many images pass the filters; None = not known."""
        watch = Stopwatch(timings_ms)
        z, code = seen.z[0], seen.codes[0]
        with watch("ood"):
            verdict = self.verdict(seen)
        if verdict is not None and verdict.foreign and self._settings.ood_policy == "refuse":
            nothing = Climb(Rung("none"), query.where, Size(0), Size(0), {})
            return Answer((), self._evidence(query, nothing, 0, watch), verdict, {})
        records = () if own is None else (own,)
        with watch("prefilter"):
            self._look_ahead(z, code, query, records, likely)
            others, remarks = as_spelled(self._store, query.where)
            nobody = nobodies(self._store, self._settings, records, query.exclude, query.group_by)
            where = without_own(others, query.exclude, records, nobody)
        wider, above = 1, None
        while True:
            with watch("prefilter"):
                taken = self.candidates(z, code, query, where, wider=wider, above=above)
            with watch("rank"):
                points = self._points(z, code, query, taken, nobody)
                hits = ranked_groups(points, code, query.order, query.group_by, nobody)
            # A further page of a list stays on the rung of the first.
            narrowed = taken.rung.name in ("codes", "cells") and query.page is None
            if query.radius is not None and taken.rung.cells:
                narrowed = False
            if len(hits) >= query.k or not narrowed:
                break
            if taken.size.estimated:
                # The estimate may have been too high.
                above = taken
            else:
                # The candidates may all be of a few studies.
                wider *= _WIDER
        remarks = (*remarks, *remark_on(nobody, records, query.exclude))
        if not points:
            remarks = (*remarks, *remark_on_nothing(self._store, others, query.exclude))
        facets = Facets()
        if query.facets:
            with watch("facets"):
                facets = self._facets(where, taken.matching)
        end = query.offset + query.k
        more = len(hits) > end and end + query.k <= MAX_K
        evidence = self._evidence(query, taken, len(points), watch)
        with watch("rank"):
            shown = self._scaled(seen.z, hits[query.offset : end])
        return Answer(
            tuple(shown),
            replace(
                evidence,
                facets_estimated=facets.estimated,
                facets_at_least=facets.at_least,
                note=joined(evidence.note, remarks),
                **self._told_of(shown),
            ),
            verdict,
            facets,
            str(Cursor(taken.rung.label, end)) if more else None,
        )

    def verdict(self, seen: Observations) -> OodVerdict | None:
        """The OOD verdict on a query of one or more images.

        Of n images, the verdict on the one with the smallest p-value, its p multiplied by n
        (Bonferroni); otherwise a query of more images would be called foreign more often.

        Returns:
            None without a gate, or when none of its detectors has what it needs.
        """
        if self._gate is None or not self._gate.detectors_for(seen):
            return None
        strictest = min(self._gate.verdicts(seen), key=lambda verdict: verdict.p)
        return strictest.of_several(len(seen))

    def _scaled(self, z: NDArray[np.float32], hits: Sequence[Hit]) -> list[Hit]:
        """The hits of a query of images with these z, float32 (N, D), with their likeness, where
        the gate has a scale."""
        scale = None if self._gate is None else self._gate.likeness
        if scale is None or not hits:
            return list(hits)
        likeness = scale.of(z, np.array([hit.similarity for hit in hits])).tolist()
        return [replace(hit, likeness=one) for hit, one in zip(hits, likeness, strict=True)]

    def candidates(
        self,
        z: NDArray[np.float32],
        code: NDArray[np.uint8],
        query: Query,
        where: Filter,
        *,
        wider: int = 1,
        above: Climb | None = None,
        sized: Callable[[Filter], Size | None] | None = None,
    ) -> Climb:
        """The result of the coarse filter for a query.

        Args:
            z: float32 (D,). code: uint8 (B/8,), packed.
            where: the query's filters.
            wider, above: for a search that had too few hits, see :func:`climb`.
            sized: for a look ahead, see :func:`climb`.
        """
        settings = self._settings
        if query.exact:
            size = sized(where) if sized else size_of(self._store, where, settings.max_counted)
            size = size or Size(0)
            return Climb(Rung("exact"), where, size, size, {"exact": size.count})
        return climb(
            self._store,
            z,
            code,
            where,
            query.k,
            settings,
            wider=wider,
            above=above,
            sized=sized,
            **_how_to_climb(query),
        )

    def _asking(self, store: VectorStore) -> "SearchEngine":
        """This engine, with the store for one question in place of its own."""
        if store is self._store:
            return self
        made = copy(self)
        made._store = store
        return made

    def _look_ahead(
        self,
        z: NDArray[np.float32],
        code: NDArray[np.uint8],
        query: Query,
        own: Sequence[ImageRecord],
        likely: int | None,
    ) -> None:
        """Sends ahead what the search for an image will ask of a server."""
        store, settings = self._store, self._settings
        if not isinstance(store, AheadStore):
            return
        look_ahead(
            store,
            settings,
            query,
            own,
            rungs=lambda where, most: looked_into(
                store, z, code, where, query.k, settings, most, **_how_to_climb(query)
            ),
            candidates=lambda where, sized: self.candidates(z, code, query, where, sized=sized),
            asked=lambda taken: self._asked_first(z, code, query, taken),
            likely=likely,
        )

    def _asked_first(
        self, z: NDArray[np.float32], code: NDArray[np.uint8], query: Query, taken: Climb
    ) -> list[Nearest]:
        """The first requests of :meth:`_points`."""
        wanted, exact = self._wanted(query), not taken.approximate
        if query.order != "hamming" and query.group_by is not None:
            wanted = first_limit(wanted)
        asked = [Nearest(z, taken.where, wanted, exact)]
        if query.order == "hamming" and query.radius is not None and taken.rung.name == "dense":
            asked.append(Nearest(z, _within_radius(code, query.radius, taken), wanted, exact=True))
        return asked

    def _wanted(self, query: Query) -> int:
        """How many candidates to rank: the hits wanted, and one more (is there a next page?)."""
        wanted = query.offset + query.k + 1
        return (
            max(wanted, self._settings.max_hamming_ranked) if query.order == "hamming" else wanted
        )

    def _points(
        self,
        z: NDArray[np.float32],
        code: NDArray[np.uint8],
        query: Query,
        taken: Climb,
        nobody: Collection[str],
    ) -> list[Point]:
        """The candidates to rank: the hits wanted, one more (is there a next page?) and ties."""
        store, exact = self._store, not taken.approximate
        wanted = self._wanted(query)
        if query.order != "hamming" and query.group_by is not None:
            return best_of_each(
                store, z, taken.where, query.group_by, wanted, exact=exact, nobody=nobody
            )
        found = most_similar(store, z, taken.where, wanted, exact=exact)
        if query.order == "hamming" and query.radius is not None and taken.rung.name == "dense":
            # Those most similar by vector may be others than those within the radius.
            ball = _within_radius(code, query.radius, taken)
            near = most_similar(store, z, ball, wanted, exact=True)
            found = list({point.id: point for point in (*near, *found)}.values())
        return found

    def _evidence(
        self, query: Query, taken: Climb, ranked_count: int, watch: Stopwatch
    ) -> Evidence:
        cells = self._store.cells
        return Evidence(
            rung=taken.rung.name,
            radius=taken.radius,
            cells=taken.rung.cells or None,
            cells_in_all=len(cells) if self._tells_cells and cells is not None else None,
            matching=taken.matching.count,
            candidates=taken.size.count,
            estimated=taken.size.estimated,
            compared=taken.compared,
            approximate=taken.approximate,
            ranked=ranked_count,
            rungs_tried=taken.tried,
            order=query.order,
            model=self._store.collection.model,
            bits=self._store.collection.bits,
            precision=self._encoder.precision,
            index_precision=self._store.collection.precision,
            note=taken.note,
            timings_ms=watch.rounded(),
        )


def _how_to_climb(query: Query) -> dict[str, Any]:
    """What of a query the ladder is told by name."""
    return {
        "by_code": query.order == "hamming",
        "within": query.radius,
        "only": None if query.page is None else query.page.rung,
    }


def _within_radius(code: NDArray[np.uint8], radius: int, taken: Climb) -> Filter:
    return replace(taken.where, coarse=Coarse(code=code.tobytes(), radius=radius))

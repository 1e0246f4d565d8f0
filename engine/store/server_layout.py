"""The layout of a collection on a Qdrant server: vectors, payload indexes and metadata."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qdrant_client import models

from engine.errors import StoreError
from engine.store.arrangement import EF_CONSTRUCT, FULL_SCAN_KB, LINKS, QUANTILE, VECTOR, WORDS
from engine.store.base import Collection, Profile
from engine.store.payload import FieldKind

__all__ = [
    "FORMAT",
    "OFTEN_DISTINCT",
    "SIDES",
    "WITH_WORDS",
    "CellsNoted",
    "Noted",
    "field_index",
    "note",
    "note_cells",
    "noted",
    "noted_cells",
    "own_name",
    "rearranged",
    "side_name",
    "vectors",
]

_KEY, _CELLS_KEY = "precedent", "precedent_cells"
"""Of the metadata. The server merges them by key: what is noted of one leaves the other alone."""
FORMAT, WITH_WORDS = 1, 2
"""Of vectors, payload, payload indexes and metadata; and of a collection whose points have a second
vector, which is all that it has more."""
OFTEN_DISTINCT = {"study", "series", "sop", "patient"}
"""Fields with about as many values as there are studies or images. Their indexes are kept on
disk, so that they are not limited by the memory of a node."""


SIDES = ("a", "b")
"""The centroids of a collection's cells lie in one of two collections beside it, in turn."""


@dataclass(frozen=True, slots=True)
class CellsNoted:
    """The cells in force of a collection, see :class:`engine.store.cells.Cells`.

    side: which of :data:`SIDES` has the centroids. count: of the centroids. since: when they came
    into force, seconds since 1970 by the clock of who made them. measured: how many points there
    were when the recall was measured; 0 = as many as when they were made.
    """

    side: str
    key: str
    count: int
    points: int
    probes: int
    recall: float
    code_recall: float
    since: float
    measured: int = 0


@dataclass(frozen=True, slots=True)
class Noted:
    """The metadata of a collection.

    complete: all its payload indexes have been created. cells: None = it has none.
    """

    collection: Collection
    profile: Profile
    complete: bool
    cells: CellsNoted | None = None


def own_name(alias: str, collection: Collection) -> str:
    """The own name of the collection that can be put in force under ``alias``."""
    return f"{alias}-{collection.model}"


def side_name(name: str, side: str) -> str:
    """The collection with centroids of the collection with the own name ``name``."""
    return f"{name}-cells-{side}"


def note(found: Noted) -> dict[str, Any]:
    """The metadata to store with a collection, but for its cells, as JSON values; :func:`noted`
    reads them back."""
    number = FORMAT if found.collection.words is None else WITH_WORDS
    described = {"format": number, **found.collection.noted(), "profile": asdict(found.profile)}
    return {_KEY: {**described, "complete": found.complete}}


def noted(info: models.CollectionInfo, place: str) -> Noted | None:
    """The metadata in ``info``; None = there is none: this program did not create the collection.

    Args:
        place: what to call the collection in an error.

    Raises:
        StoreError: the metadata are not as :func:`note` writes them.
    """
    metadata = info.config.metadata or {}
    if _KEY not in metadata:
        return None
    try:
        values = dict(metadata[_KEY])
        complete, profile = values.pop("complete"), Profile(**values.pop("profile"))
        latest = FORMAT if values.get("words") is None else WITH_WORDS
        collection = Collection.from_noted(values, place, latest)
        return Noted(collection, profile, complete, noted_cells(info))
    except (TypeError, ValueError, KeyError) as error:
        raise StoreError(
            f"the metadata {metadata[_KEY]!r} of {place} cannot be understood ({error!r}): "
            "another version of Precedent wrote them, or they were changed by hand; name "
            "another collection with PRECEDENT_STORE__COLLECTION and index again"
        ) from None


def note_cells(found: CellsNoted) -> dict[str, Any]:
    """The metadata that put cells in force; :func:`noted_cells` reads them back."""
    return {_CELLS_KEY: asdict(found)}


def noted_cells(info: models.CollectionInfo) -> CellsNoted | None:
    """The cells in force according to ``info``; None = there are none that this version knows."""
    try:
        return CellsNoted(**(info.config.metadata or {})[_CELLS_KEY])
    except (TypeError, KeyError):
        return None


def vectors(collection: Collection, profile: Profile) -> dict[str, models.VectorParams]:
    """The vector configuration of a new collection."""
    made = {
        VECTOR: models.VectorParams(
            size=collection.dim,
            distance=models.Distance.COSINE,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            hnsw_config=_graph(profile),
            quantization_config=_quantisation() if profile.quantised else None,
        )
    }
    if collection.words is not None:
        made[WORDS] = models.VectorParams(
            size=collection.words,
            distance=models.Distance.COSINE,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            hnsw_config=_graph(Profile()),
        )
    return made


def rearranged(profile: Profile) -> dict[str, models.VectorParamsDiff]:
    """The change of the vector configuration that gives a collection this profile."""
    return {
        VECTOR: models.VectorParamsDiff(
            hnsw_config=_graph(profile),
            quantization_config=(
                _quantisation() if profile.quantised else models.Disabled.DISABLED
            ),
        )
    }


def _graph(profile: Profile) -> models.HnswConfigDiff:
    return models.HnswConfigDiff(
        m=LINKS if profile.graph == "precise" else 0,
        ef_construct=EF_CONSTRUCT,
        full_scan_threshold=FULL_SCAN_KB,
    )


def _quantisation() -> models.ScalarQuantization:
    config = models.ScalarQuantizationConfig(
        type=models.ScalarType.INT8, quantile=QUANTILE, always_ram=True
    )
    return models.ScalarQuantization(scalar=config)


def field_index(field: str, kind: FieldKind) -> models.PayloadSchemaParams:
    """The index parameters of a payload field: for filters and counts, without HNSW links."""
    return _INDEX[kind](field in OFTEN_DISTINCT)


_KEYWORD, _INTEGER = models.KeywordIndexType.KEYWORD, models.IntegerIndexType.INTEGER

_INDEX: dict[FieldKind, Callable[[bool], models.PayloadSchemaParams]] = {
    FieldKind.TENANT: lambda on_disk: models.KeywordIndexParams(
        type=_KEYWORD, is_tenant=True, on_disk=on_disk, enable_hnsw=False
    ),
    FieldKind.CELL: lambda on_disk: models.IntegerIndexParams(
        type=_INTEGER,
        lookup=True,
        range=True,
        is_principal=True,
        on_disk=on_disk,
        enable_hnsw=False,
    ),
    FieldKind.KEYWORD: lambda on_disk: models.KeywordIndexParams(
        type=_KEYWORD, on_disk=on_disk, enable_hnsw=False
    ),
    FieldKind.INTEGER: lambda on_disk: models.IntegerIndexParams(
        type=_INTEGER, lookup=True, range=True, on_disk=on_disk, enable_hnsw=False
    ),
    FieldKind.BOOL: lambda on_disk: models.BoolIndexParams(
        type=models.BoolIndexType.BOOL, on_disk=on_disk, enable_hnsw=False
    ),
    FieldKind.LOOKUP: lambda on_disk: models.IntegerIndexParams(
        type=_INTEGER, lookup=True, range=False, on_disk=on_disk, enable_hnsw=False
    ),
}

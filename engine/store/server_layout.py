"""How a collection on a Qdrant server is laid out, and what it notes about itself."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qdrant_client import models

from engine.errors import StoreError
from engine.store.arrangement import EF_CONSTRUCT, FULL_SCAN_KB, LINKS, QUANTILE, VECTOR
from engine.store.base import FORMAT, Collection, Profile
from engine.store.payload import FieldKind

__all__ = ["Noted", "field_index", "note", "noted", "own_name", "rearranged", "vectors"]

_KEY = "precedent"
_OFTEN_DISTINCT = {"study", "series", "sop", "patient"}
"""Fields with about as many values as there are studies or images: their indexes stay on
disk, where the memory of a node does not bound them."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What a collection says of itself. complete: all its payload indexes have been made."""

    collection: Collection
    profile: Profile
    complete: bool


def own_name(alias: str, collection: Collection) -> str:
    """What a collection is called that may come into force under the name ``alias``."""
    return f"{alias}-{collection.model}"


def note(found: Noted) -> dict[str, Any]:
    """The metadata of a collection."""
    described = {"format": FORMAT, **found.collection.noted(), "profile": asdict(found.profile)}
    return {_KEY: {**described, "complete": found.complete}}


def noted(info: models.CollectionInfo, place: str) -> Noted | None:
    """What the collection at ``place`` says of itself; None = nothing: it is none of ours.

    Raises:
        StoreError: what it says cannot be understood.
    """
    metadata = info.config.metadata or {}
    if _KEY not in metadata:
        return None
    try:
        values = dict(metadata[_KEY])
        complete, profile = values.pop("complete"), Profile(**values.pop("profile"))
        return Noted(Collection.from_noted(values, place), profile, complete)
    except (TypeError, ValueError, KeyError) as error:
        raise StoreError(
            f"the metadata {metadata[_KEY]!r} of {place} cannot be understood ({error!r}): "
            "another version of Precedent wrote them, or they were changed by hand; name "
            "another collection with PRECEDENT_STORE__COLLECTION and index again"
        ) from None


def vectors(collection: Collection, profile: Profile) -> dict[str, models.VectorParams]:
    """The vectors of a collection that is made anew."""
    return {
        VECTOR: models.VectorParams(
            size=collection.dim,
            distance=models.Distance.COSINE,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            hnsw_config=_graph(profile),
            quantization_config=_quantisation() if profile.quantised else None,
        )
    }


def rearranged(profile: Profile) -> dict[str, models.VectorParamsDiff]:
    """What has to change in the vectors for them to have this profile."""
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
    """How a payload field is indexed: for filters and counts, without links in the graph."""
    return _INDEX[kind](field in _OFTEN_DISTINCT)


_KEYWORD, _INTEGER = models.KeywordIndexType.KEYWORD, models.IntegerIndexType.INTEGER

_INDEX: dict[FieldKind, Callable[[bool], models.PayloadSchemaParams]] = {
    FieldKind.TENANT: lambda on_disk: models.KeywordIndexParams(
        type=_KEYWORD, is_tenant=True, on_disk=on_disk, enable_hnsw=False
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

"""The layout of a collection on a Qdrant server: vectors, payload indexes and metadata."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qdrant_client import models

from engine.errors import StoreError
from engine.store.arrangement import EF_CONSTRUCT, FULL_SCAN_KB, LINKS, QUANTILE, VECTOR
from engine.store.base import Collection, Profile
from engine.store.payload import FieldKind

__all__ = ["Noted", "field_index", "note", "noted", "own_name", "rearranged", "vectors"]

_KEY = "precedent"
_FORMAT = 1
"""Of vectors, payload, payload indexes and metadata."""
_OFTEN_DISTINCT = {"study", "series", "sop", "patient"}
"""Fields with about as many values as there are studies or images. Their indexes are kept on
disk, so that they are not limited by the memory of a node."""


@dataclass(frozen=True, slots=True)
class Noted:
    """The metadata of a collection. complete: all its payload indexes have been created."""

    collection: Collection
    profile: Profile
    complete: bool


def own_name(alias: str, collection: Collection) -> str:
    """The own name of the collection that can be put in force under ``alias``."""
    return f"{alias}-{collection.model}"


def note(found: Noted) -> dict[str, Any]:
    """The metadata to store with a collection, as JSON values; :func:`noted` reads them back."""
    described = {"format": _FORMAT, **found.collection.noted(), "profile": asdict(found.profile)}
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
        return Noted(Collection.from_noted(values, place, _FORMAT), profile, complete)
    except (TypeError, ValueError, KeyError) as error:
        raise StoreError(
            f"the metadata {metadata[_KEY]!r} of {place} cannot be understood ({error!r}): "
            "another version of Precedent wrote them, or they were changed by hand; name "
            "another collection with PRECEDENT_STORE__COLLECTION and index again"
        ) from None


def vectors(collection: Collection, profile: Profile) -> dict[str, models.VectorParams]:
    """The vector configuration of a new collection."""
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

"""What the service is: its model, what the caller's archive holds, its sources, and who asks."""

from contextlib import suppress
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict

from api.http.deps import ArchiveDep
from api.http.problems import problem_responses
from api.security.keys import Keys
from api.security.policy import Scope
from engine.errors import ModelError, NotAuthenticated
from engine.model.manifest import SHIPPED, WEIGHTS, read_manifest
from engine.settings import DicomWebSettings, FolderSettings
from engine.store.base import Filter
from engine.tenants import DEFAULT_TENANT
from indexer.archive import TenantArchive
from indexer.datadir.models import model_directory

__all__ = ["get_model", "router"]

router = APIRouter(tags=["service"])

_LICENCE = "Apache-2.0"
"""Of the weights that are shipped."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ModelDocument(_Document):
    """The model that encodes uploads.

    - `fingerprint`: of all that decides what an image is encoded to; the index has the same.
    - `tower`: its network. `bits`: length of its codes. `dim`: of its vectors.
    - `input_side`: in pixels; larger images are reduced to it. `colour`: whether it sees colours.
    - `precision`, `index_precision`: "fp32" or "bf16", in which this service and the index encode;
      null: not recorded.
    - `size_bytes`: of its weights; null: not known. `licence`: of these; null: not known.
    - `classes`: kinds of images that it was trained to tell.
    - `judges`: whether it says if an image is of a kind that it knows (`ood`).
    - `rendering`: version of this service's reader.
    """

    model_config = ConfigDict(
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "fingerprint": "5f2900fd348e5292",
                    "tower": "timm:regnetx_004",
                    "bits": 64,
                    "dim": 256,
                    "input_side": 96,
                    "colour": False,
                    "precision": "fp32",
                    "index_precision": "fp32",
                    "size_bytes": 14812345,
                    "licence": "Apache-2.0",
                    "classes": ["CXR", "ChestCT"],
                    "judges": True,
                    "rendering": "3",
                }
            ]
        },
    )

    fingerprint: str
    tower: str
    bits: int
    dim: int
    input_side: int
    colour: bool
    precision: str
    index_precision: str | None
    size_bytes: int | None
    licence: str | None
    classes: list[str]
    judges: bool
    rendering: str | None


class IndexDocument(_Document):
    """The state of the index, which all tenants share.

    - `profile`: "hash", or "precise" with a graph. `quantised`: eight-bit vectors are kept as well.
    - `cells`: of the coarse filter, by how many images all tenants have together; null: there are
      none yet, or the caller lacks the scope `metrics`.
    """

    profile: str
    quantised: bool
    cells: int | None


class StatsDocument(_Document):
    """What the archive holds of the caller's.

    - `points`: images (frames) in the index. `instances`: files, by state: "done", "pending",
      "refused".
    - `facets`: number of images by field and value. `facets_at_least`: as in the evidence of a
      search.
    - `model`: fingerprint of the model that made the index. `index`: its state.
    """

    model_config = ConfigDict(
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "points": 7211,
                    "instances": {"done": 6120, "pending": 0, "refused": 12},
                    "facets": {"modality": {"CT": 5120, "MR": 2091}},
                    "facets_at_least": [],
                    "model": "5f2900fd348e5292",
                    "index": {"profile": "hash", "quantised": False, "cells": 64},
                }
            ]
        },
    )

    points: int
    instances: dict[str, int]
    facets: dict[str, dict[str, int]]
    facets_at_least: list[str]
    model: str
    index: IndexDocument


class SourceDocument(_Document):
    """A source of images.

    - `images`: how many of the caller's images come from it.
    - `kind`: "folder" or "dicomweb"; null: the settings do not name this source.
    - `places`: its folders, or its address; null for callers without the scope `admin`.
    """

    name: str
    images: int
    kind: Literal["folder", "dicomweb"] | None
    places: list[str] | None


class SourcesDocument(_Document):
    """The sources of the caller's images; with the scope `admin` also those of the caller's tenant
    without any.

    - `images_at_least`: there are so many sources, on a Qdrant server of several shards, that the
      numbers of images are lower bounds, and sources may be missing. Usually not.
    """

    model_config = ConfigDict(
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "sources": [
                        {
                            "name": "pacs",
                            "images": 7211,
                            "kind": "dicomweb",
                            "places": ["https://pacs.example/dicom-web"],
                        }
                    ],
                    "images_at_least": False,
                }
            ]
        },
    )

    sources: list[SourceDocument]
    images_at_least: bool


class WhoamiDocument(_Document):
    """Who asks.

    - `id`: public id of the key; null: a service without keys. `name`: by which people tell it.
    - `scopes`: what it allows. `tenant`: whose images it sees.
    - `expires_at`: UTC; null: it holds until it is revoked. `session`: whether it is used by way of
      the page's session.
    """

    model_config = ConfigDict(
        frozen=True,
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "id": "4f0c2a917be65d38",
                    "name": "ward 3",
                    "scopes": ["search"],
                    "tenant": "default",
                    "expires_at": "2027-02-28T09:00:00Z",
                    "session": False,
                }
            ]
        },
    )

    id: str | None
    name: str | None
    scopes: list[str]
    tenant: str
    expires_at: datetime | None
    session: bool


@router.get(
    "/v1/model",
    operation_id="getModel",
    summary="The model that encodes images",
    responses=problem_responses(503),
)
def get_model(archive: ArchiveDep) -> ModelDocument:
    """Fingerprint, size, precision and licence."""
    manifest = archive.manifest
    return ModelDocument(
        fingerprint=manifest.fingerprint,
        tower=manifest.network.tower.name,
        bits=manifest.bits,
        dim=manifest.dim,
        input_side=manifest.preprocess.size,
        colour=manifest.preprocess.colour,
        precision=archive.engine.precision,
        index_precision=archive.store.collection.precision,
        size_bytes=_weights_bytes(archive),
        licence=_licence(archive),
        classes=list(manifest.classes),
        judges=archive.engine.judges,
        rendering=archive.rendering,
    )


def _weights_bytes(archive: TenantArchive) -> int | None:
    with suppress(OSError, ModelError):
        directory = model_directory(archive.settings)
        if read_manifest(directory).fingerprint == archive.manifest.fingerprint:
            return (directory / WEIGHTS).stat().st_size
    return None


def _licence(archive: TenantArchive) -> str | None:
    told: Any = archive.manifest.training.get("licence")
    with suppress(ModelError):
        if read_manifest(SHIPPED).fingerprint == archive.manifest.fingerprint:
            return _LICENCE
    return told if isinstance(told, str) else None


@router.get(
    "/v1/stats",
    operation_id="getStats",
    summary="What the archive holds",
    responses=problem_responses(503),
)
def get_stats(archive: ArchiveDep, request: Request) -> StatsDocument:
    """Counts by field and value over the caller's images, and the state of the index."""
    tells = Scope.METRICS in request.state.caller.scopes
    cells = archive.store.cells if tells else None
    profile, facets = archive.store.profile, archive.engine.facets(Filter())
    return StatsDocument(
        points=archive.store.count(Filter()),
        instances=archive.instances(),
        facets=facets,
        facets_at_least=list(facets.at_least),
        model=archive.manifest.fingerprint,
        index=IndexDocument(
            profile=profile.graph,
            quantised=profile.quantised,
            cells=None if cells is None else len(cells),
        ),
    )


@router.get(
    "/v1/sources",
    operation_id="getSources",
    summary="Where images come from",
    responses=problem_responses(503),
)
def get_sources(archive: ArchiveDep, request: Request) -> SourcesDocument:
    """Sources by name, with the number of images from each."""
    found = archive.store.facets(["source"], Filter(), 1000)
    counts = found.get("source", {})
    caller, settings = request.state.caller, archive.settings
    for_admin = Scope.ADMIN in caller.scopes
    # One that the settings give to another tenant may have the name of one of the caller's.
    own = {
        name: source
        for name, source in settings.sources.items()
        if (source.tenant or DEFAULT_TENANT) == caller.tenant
        or (source.tenant is None and name in counts)
    }
    return SourcesDocument(
        sources=[
            SourceDocument(
                name=name,
                images=counts.get(name, 0),
                kind=own[name].kind if name in own else None,
                places=_places(own.get(name)) if for_admin else None,
            )
            for name in sorted({*counts, *(own if for_admin else ())})
        ],
        images_at_least="source" in found.at_least,
    )


def _places(found: FolderSettings | DicomWebSettings | None) -> list[str]:
    if found is None:
        return []
    if isinstance(found, FolderSettings):
        return [str(path) for path in found.paths]
    # Without a user and password that may be in it.
    parts = urlsplit(str(found.url))
    return [urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))]


def _known(request: Request) -> None:
    if request.state.caller is None:
        raise NotAuthenticated("this asks for an API key; send one as `Authorization: Bearer …`")


@router.get(
    "/v1/whoami",
    operation_id="whoAmI",
    summary="Whose key this is, and what it allows",
    responses=problem_responses(401, 403, 503),
    dependencies=[Depends(_known)],
)
def get_whoami(request: Request) -> WhoamiDocument:
    """Any key that holds may ask, whatever its scopes."""
    caller = request.state.caller
    database = request.state.ledger.database()
    key = None if None in (caller.key, database) else Keys(database).find(caller.key)
    return WhoamiDocument(
        id=caller.key or caller.subject,
        name=caller.name,
        scopes=sorted(caller.scopes),
        tenant=caller.tenant,
        expires_at=None if key is None else key.expires_at,
        session=caller.session is not None,
    )

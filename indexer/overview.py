"""What an archive holds, told without loading its model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.errors import RefusalReason, StoreLocked
from engine.model.manifest import Manifest, read_manifest
from engine.search.facets import facet_counts
from engine.search.sizes import Size
from engine.settings import Settings
from engine.store.base import Collection, Filter
from engine.store.cells import Cells
from engine.store.counts import Facets
from engine.store.opening import open_store
from engine.store.tenant import TenantStore
from engine.tenants import DEFAULT_TENANT
from indexer.datadir.indexes import indexes_of
from indexer.datadir.layout import DataDir
from indexer.datadir.models import model_directory
from indexer.imaging.rendering import rendering_of
from indexer.ledger.database import open_database
from indexer.ledger.instances import Ledger, Refused
from indexer.ledger.tenancy import all_tenants

__all__ = ["Overview", "overview"]


@dataclass(frozen=True, slots=True)
class Overview:
    """Model of an archive, and what a tenant has in its index and its ledger.

    tenant: whose. tenants: all that have something in the ledger.
    precision: in which queries are encoded. index_precision: in which the index was made; None =
    it does not say. points: pictures in the index. instances: in the ledger, by state.
    rendering: of this version. rendered_otherwise: indexed instances whose pictures another version
    made, or other settings.
    partial: indexed instances with frames that are missing or broken.
    cells: of the coarse filter; None = there are none yet.
    facets: counts by field and value over the index. refusals: refused instances, if asked for;
    refused: how many there are of them, by reason;
    missing_frames: of partial ones as well, their locators and which frames.
    not_asked: why the index could not be asked: another process has it open, and does not answer.
    Then points is None, there are no facets, and cells are not known; None = it was.
    """

    data_dir: Path
    tenant: str
    tenants: list[str]
    model: Manifest
    precision: Literal["fp32", "bf16"]
    index_precision: Literal["fp32", "bf16"] | None
    points: int | None
    instances: dict[str, int]
    facets: Facets
    refusals: list[Refused]
    refused: dict[str, int]
    rendering: str
    rendered_otherwise: int
    partial: int
    cells: Cells | None
    missing_frames: list[tuple[str, str]]
    not_asked: str | None = None


def overview(
    settings: Settings,
    refusals: int = 0,
    tenant: str = DEFAULT_TENANT,
    reason: RefusalReason | None = None,
) -> Overview:
    """What the archive of these settings holds of a tenant.

    Args:
        refusals: refused instances to name, at most; and of partial ones as many.
        reason: name only those that were refused for it, and no partial ones; None = all.

    Raises:
        ModelError: there is no model. StoreNotFound, FingerprintMismatch: as ``open_store``.
        LedgerError: the ledger cannot be opened.
    """
    data_dir = DataDir(settings.data_dir)
    manifest = read_manifest(model_directory(settings))
    wanted = Collection(manifest.fingerprint, manifest.dim, manifest.bits, words=manifest.words_dim)
    index = _index(settings, data_dir, wanted, tenant)
    with open_database(settings, data_dir.ledger) as database:
        ledger = Ledger(database.of(tenant), rendering_of(settings))
        return Overview(
            data_dir=data_dir.root,
            tenant=tenant,
            tenants=all_tenants(database),
            model=manifest,
            precision=_precision(settings, index.precision),
            index_precision=index.precision,
            points=index.points,
            instances=ledger.counts(),
            facets=index.facets,
            refusals=ledger.refusals(refusals, reason) if refusals else [],
            refused=ledger.count_refused(),
            rendering=ledger.rendering,
            rendered_otherwise=ledger.count_rendered_otherwise(),
            partial=ledger.count_partial(),
            cells=index.cells,
            missing_frames=ledger.partial(refusals) if refusals and reason is None else [],
            not_asked=index.not_asked,
        )


@dataclass(frozen=True, slots=True)
class _Index:
    """What the index itself says; see :class:`Overview`."""

    precision: Literal["fp32", "bf16"] | None
    points: int | None = None
    facets: Facets = field(default_factory=Facets)
    cells: Cells | None = None
    not_asked: str | None = None


def _index(settings: Settings, data_dir: DataDir, wanted: Collection, tenant: str) -> _Index:
    try:
        whole = open_store(settings, data_dir.index, wanted, create=False)
    except StoreLocked as error:
        found, _ = indexes_of(settings, data_dir).described(data_dir.index.name)
        return _Index(found.precision, not_asked=str(error))
    with whole:
        store = TenantStore(whole, tenant)
        everything = Filter()
        facets = facet_counts(
            store,
            everything,
            Size(store.count(everything, exact=False)),
            values=settings.search.facet_values,
            max_counted=settings.search.max_faceted,
        )
        count = store.count(everything)
        return _Index(store.collection.precision, count, facets, store.cells)


def _precision(
    settings: Settings, noted: Literal["fp32", "bf16"] | None
) -> Literal["fp32", "bf16"]:
    """As ``indexer.encoders.following`` chooses it."""
    if settings.precision != "auto":
        return settings.precision
    if noted is not None:
        return noted
    # Only PyTorch can say what "auto" is on this machine.
    from engine.model.encoder import resolved

    return resolved(settings.device, "auto")

"""Checks of the index, embedded or on a Qdrant server, and of it beside the ledger."""

from collections.abc import Iterator

from sqlalchemy import distinct, func, select

from engine.errors import LedgerError, StoreError
from indexer.datadir.indexes import indexes_of
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, Level, of_store, parted
from indexer.ledger.schema import points

__all__ = ["check_counts", "check_index", "check_precision"]


def check_index(examined: Examined) -> Iterator[Finding]:
    """What engine/store finds out about the index."""
    try:
        checks, _ = examined.index
    except StoreError as error:
        yield Finding("store", "error", "index", *parted(error, "see to the data folder"))
        return
    thing = "Qdrant server" if examined.is_served else f"index {examined.data_dir.index}"
    for one in checks:
        yield of_store(one, thing)


def check_precision(examined: Examined) -> Iterator[Finding]:
    """Whether queries are encoded in the number format of the index."""
    wanted = examined.settings.precision
    if wanted == "auto" or examined.is_served:
        return  # it follows the index, or only a connection of its own could tell
    try:
        found, _ = indexes_of(examined.settings, examined.data_dir).described(
            examined.data_dir.index.name
        )
    except StoreError:
        return  # told by the check of the index
    if found.precision not in (None, wanted):
        yield Finding(
            "precision",
            "warning",
            "precision",
            f"the index was made in {found.precision} and the setting precision is {wanted}: "
            "similarities between the two may be off by 0.01",
            "set precision to auto, and it follows the index",
        )


def check_counts(examined: Examined) -> Iterator[Finding]:
    """Whether the index has the images that the ledger says it has."""
    try:
        _, there = examined.index
        with examined.ledger.begin(read=True) as connection:
            noted = connection.execute(select(func.count(distinct(points.c.id)))).scalar_one()
    except (LedgerError, StoreError):
        return  # told by the checks of ledger and index
    if there is None:
        return
    thing = "index and ledger"
    if there == noted:
        yield Finding("counts", "ok", thing, f"{there:,} images in both")
        return
    told = f"{there:,} images in the index, {noted:,} in the ledger"
    level: Level = "error" if there < noted else "warning"
    way_out = (
        "look again when nothing is being indexed; what the index lacks comes back with "
        "`precedent index PATH… --again`, or from a snapshot of the same time"
        if there < noted
        else "look again when nothing is being indexed; after a restore without the ledger, index "
        "the files once more, and images without a file go"
    )
    yield Finding("counts", level, thing, told, way_out)

"""All checks of an installation that need nothing of the service, in the order to read them in."""

from indexer.doctor.backup import check_backup
from indexer.doctor.broker import check_broker
from indexer.doctor.clock import check_clock
from indexer.doctor.decoders import check_decoders
from indexer.doctor.destinations import check_destinations
from indexer.doctor.folder import check_deletions, check_disk, check_folder, check_keys
from indexer.doctor.index import check_counts, check_index, check_precision
from indexer.doctor.ledger import check_jobs, check_ledger, check_pending
from indexer.doctor.model import check_calibration, check_model
from indexer.doctor.running import CheckOf
from indexer.doctor.sources import check_sources
from indexer.doctor.thumbnails import check_thumbnails

__all__ = ["CHECKS"]

CHECKS: dict[str, CheckOf] = {
    "folder": check_folder,
    "keys": check_keys,
    "disk": check_disk,
    "thumbnails": check_thumbnails,
    "model": check_model,
    "calibration": check_calibration,
    "store": check_index,
    "precision": check_precision,
    "ledger": check_ledger,
    "counts": check_counts,
    "pending": check_pending,
    "deletions": check_deletions,
    "backup": check_backup,
    "jobs": check_jobs,
    "broker": check_broker,
    "clock": check_clock,
    "decoders": check_decoders,
    "sources": check_sources,
    "destinations": check_destinations,
}
"""By the name that a finding has if the check itself fails."""

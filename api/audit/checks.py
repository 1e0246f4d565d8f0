"""Checks of the audit log, and of the drift that its verdicts show; they change nothing."""

import os
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from math import sqrt
from pathlib import Path

from sqlalchemy import URL

from api.audit.log import AuditLog, audit_file
from api.audit.rows import Row, digest
from api.audit.schema import AUDIT
from engine.errors import AuditError, LedgerError
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted
from indexer.doctor.ledger import damage_of, of_revision
from indexer.doctor.running import CheckOf
from indexer.ledger.database import Database

__all__ = ["CHECKS", "check_audit", "check_drift"]

_LATEST = 1000
"""Rows at the end of the log whose hashes are compared."""
_LEAST_QUERIES = 50
_DRIFT_DAYS = 90
_SIGMAS = 3.1
"""One archive in a thousand without drift is called drifting."""
_VERIFY = "`precedent audit verify` names each row"


def check_audit(examined: Examined) -> Iterator[Finding]:
    """Whether accesses are recorded, and the end of the record is whole."""
    if not examined.settings.audit.enabled:
        yield Finding(
            "audit",
            "warning",
            "audit log",
            "it is switched off: who has access to which images is not recorded",
            "set audit.enabled to true",
        )
        return
    file = audit_file(examined.settings)
    thing = "audit log" if file is None else f"audit log {file}"
    if not examined.is_there:
        return
    if file is not None and not file.is_file():
        yield Finding(
            "audit", "warning", thing, "there is none: nothing was recorded yet",
            "restore it, if there was one; the next access makes it",
        )  # fmt: skip
        return
    try:
        with _opened(examined, file) as database:
            damage, revision = damage_of(database, file), database.revision()
            if damage is None and (found := of_revision("audit", thing, revision, AUDIT.head)):
                yield found
                return
            latest = [] if damage else list(islice(_rows(database), _LATEST))
            writes = _may_write(database, file)
    except LedgerError as error:
        yield Finding("audit", "error", thing, *parted(error, "restore it from the backup"))
        return
    if damage is not None:
        yield Finding("audit", "error", thing, damage, "restore it from the backup")
    elif not writes:
        yield Finding(
            "audit",
            "error",
            thing,
            "this user may not write to it, and what cannot be recorded is not answered",
            "run the command as the user of the service, or change its permissions",
        )
    elif (flaw := _flaw(latest)) is not None:
        yield Finding("audit", "error", thing, f"it was tampered with: {flaw}", _VERIFY)
    else:
        when = f", the latest of {latest[0].at[:16].replace('T', ' ')} UTC" if latest else ""
        yield Finding("audit", "ok", thing, f"the latest {len(latest):,} rows are whole{when}")


def check_drift(examined: Examined) -> Iterator[Finding]:
    """Whether more queries are called foreign than the calibration lets known images be."""
    gate, file = examined.gate, audit_file(examined.settings)
    there = examined.is_there and (file is None or file.is_file())
    if gate is None or not examined.settings.audit.enabled or not there:
        return
    since = examined.clock() - timedelta(days=_DRIFT_DAYS)
    try:
        with _opened(examined, file) as database:
            judged = AuditLog(database).between(since, naming=['"verdict":"'], latest_first=True)
            verdicts = [_verdict(row) for row in islice(judged, examined.last)]
    except LedgerError:
        return  # told by the check of the log
    count, foreign = len(verdicts), verdicts.count("foreign")
    if count < _LEAST_QUERIES:
        yield Finding("drift", "ok", "queries", f"{count} judged lately, too few to tell")
        return
    share, alpha = foreign / count, gate.alpha
    told = f"{foreign:,} of the latest {count:,} are foreign, {share:.1%} where α is {alpha:g}"
    if share > alpha + _SIGMAS * sqrt(alpha * (1 - alpha) / count):
        yield Finding(
            "drift",
            "warning",
            "queries",
            f"{told}: other scanners, protocols or kinds of images are asked about",
            "look at some of them; if they belong to this archive, index such images and "
            "`precedent calibrate` again",
        )
    else:
        yield Finding("drift", "ok", "queries", told)


CHECKS: dict[str, CheckOf] = {"audit": check_audit, "drift": check_drift}
"""By the name that a finding has if the check itself fails."""


def _opened(examined: Examined, file: Path | None) -> Database:
    """The log's database, for looking alone. Raises LedgerError: it cannot be opened."""
    if file is not None:
        return Database(URL.create("sqlite", database=str(file)), AUDIT, reads_only=True)
    url = examined.settings.ledger.url
    if url is None:
        raise AuditError("the audit log has no place; name one in PRECEDENT_LEDGER__URL")
    return Database(url.get_secret_value(), AUDIT, reads_only=True)


def _rows(database: Database) -> Iterator[Row]:
    return AuditLog(database).between(latest_first=True)


def _may_write(database: Database, file: Path | None) -> bool:
    if file is not None:
        return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    with database.begin(read=True) as connection:
        asked = "SELECT has_table_privilege(current_user, 'audit', 'INSERT')"
        return bool(connection.exec_driver_sql(asked).scalar())


def _flaw(latest: list[Row]) -> str | None:
    """What is wrong with rows, the latest first; None = they are whole."""
    after: dict[str, Row] = {}
    for row in latest:
        if digest(row.body) != row.hash:
            return f"row {row.seq} of chain {row.chain} was changed"
        follower = after.get(row.chain)
        if follower is not None and follower.seq == row.seq + 1 and _previous(follower) != row.hash:
            return f"row {follower.seq} of chain {row.chain} does not follow the row before it"
        after[row.chain] = row
    return None


def _previous(row: Row) -> object:
    try:
        return row.document.get("previous")
    except ValueError:
        return None


def _verdict(row: Row) -> object:
    try:
        return row.document.get("verdict")
    except ValueError:
        return None

"""Retention: which instances the rules of the settings do not keep any longer."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from engine.errors import ErasureError
from engine.retention_settings import RetentionRule
from engine.store.base import Condition, Filter, Match, Range
from indexer.archive import Archive
from indexer.erasure.erasing import Erased, Erasing, Progress
from indexer.ledger.erasing import LedgerTraces

__all__ = ["Due", "apply_rule", "check_share", "due_by"]

_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Due:
    """What a rule does not keep any longer.

    instances: how many. of: how many the tenant has in all, or of the rule's source. cut_short: an
    erasure by the rule has begun, and not come to its end.
    """

    rule: str
    tenant: str
    instances: int
    of: int
    cut_short: bool = False


def due_by(name: str, rule: RetentionRule, archive: Archive, now: datetime) -> Due:
    """What the rule of this name does not keep any longer.

    archive: of the rule's tenant.
    """
    count = sum(map(len, _pages(rule, archive, now)))
    of = archive.ledger.count(source=rule.source)
    return Due(name, archive.tenant, count, of, Erasing(archive).is_cut_short(name))


def check_share(due: Due, at_most: float) -> None:
    """Raises ErasureError: more than this share, in [0, 1], would go, so that the rule, or the
    clock, may be wrong."""
    if due.instances > at_most * due.of:
        raise ErasureError(
            f"rule {due.rule!r} would erase {due.instances:,} of {due.of:,} instances of tenant "
            f"{due.tenant!r}; that is more than {at_most:.0%}, so nothing was erased. If it is "
            "right, give --at-most 100%"
        )


def apply_rule(
    name: str, rule: RetentionRule, archive: Archive, now: datetime, progress: Progress
) -> Erased:
    """Erases what the rule does not keep any longer; see ``Erasing.erase_by_rule``."""
    erasing = Erasing(archive, progress=progress)
    return erasing.erase_by_rule(name, lambda: _pages(rule, archive, now))


def _pages(rule: RetentionRule, archive: Archive, now: datetime) -> Iterator[list[str]]:
    """Locators of what the rule names, some at a time, each once."""
    before = None
    if rule.indexed_days is not None:
        before = (now - timedelta(days=rule.indexed_days)).isoformat(timespec="seconds")
    if rule.study_years is None:
        if before is not None:
            yield from LedgerTraces(archive.database.of(archive.tenant)).before(before, rule.source)
        return
    last = now.year - rule.study_years - 1
    conditions: list[Condition] = [Range("study_year", None, last)]
    if rule.source is not None:
        conditions.append(Match("source", (rule.source,)))
    points = archive.store.scroll(Filter(tuple(conditions)))
    while ids := {point.id for point in islice(points, _AT_ONCE)}:
        owners = archive.ledger.owners(sorted(ids))
        locators = {
            one.locator
            for found in owners.values()
            for one in found
            if before is None or one.at < before
        }
        # Points come in the order of their ids: an instance is named with the first of its own.
        frames = archive.ledger.points_of(sorted(locators))
        yield sorted(one for one, own in frames.items() if min(own) in ids)

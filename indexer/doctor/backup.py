"""How old the last backup of the data folder is."""

from collections.abc import Iterator
from datetime import timedelta

from engine.errors import BackupError
from indexer.backup.noted import last_backup
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted

__all__ = ["check_backup"]

_MAKE = "make one with `precedent backup create FILE`, best by a timer"


def check_backup(examined: Examined) -> Iterator[Finding]:
    """Whether the last backup is as young as the settings ask for."""
    days = examined.settings.backup.at_most_days
    if not examined.is_there:
        return
    try:
        last = last_backup(examined.data_dir.root)
    except BackupError as error:
        yield Finding("backup", "warning", "backup", *parted(error, _MAKE))
        return
    if last is None:
        if days is not None:
            yield Finding("backup", "warning", "backup", "none was made here", _MAKE)
        return
    age = examined.clock() - last
    told = f"the last one is of {last:%Y-%m-%d %H:%M} UTC, {age / timedelta(days=1):.1f} days ago"
    if days is not None and age > timedelta(days=days):
        yield Finding(
            "backup", "warning", "backup", f"{told}; backup.at_most_days is {days:g}", _MAKE
        )
    else:
        yield Finding("backup", "ok", "backup", told)

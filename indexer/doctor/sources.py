"""Checks of the sources that settings name, as far as they lie on this machine."""

import os
from collections.abc import Iterator

from engine.settings import FolderSettings
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding

__all__ = ["check_sources"]


def check_sources(examined: Examined) -> Iterator[Finding]:
    """Whether the paths of folder sources are there, can be read, and are not empty as those of a
    disk that is not mounted."""
    for name, source in examined.settings.sources.items():
        if not isinstance(source, FolderSettings):
            continue
        wrong = [said for path in source.paths if (said := _wrong_with(os.fspath(path)))]
        if wrong:
            yield Finding(
                "sources",
                "warning",
                f"source {name}",
                "; ".join(wrong),
                f"mount it, or correct sources.{name}.paths: every worker has to see it there",
            )
        else:
            yield Finding("sources", "ok", f"source {name}", f"{len(source.paths)} paths are there")


def _wrong_with(path: str) -> str | None:
    if not os.path.exists(path):  # noqa: PTH110 - which raises where the file system does
        return f"{path} is not there"
    if not os.access(path, os.R_OK):
        return f"{path} cannot be read by this user"
    try:
        with os.scandir(path) as entries:
            empty = next(entries, None) is None
    except NotADirectoryError:
        return None
    except OSError as error:
        return f"{path} cannot be listed ({error.strerror})"
    return f"{path} is empty" if empty else None

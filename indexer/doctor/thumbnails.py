"""Checks of the object store that thumbnails lie in: it answers, lets us read, and forgets."""

from collections.abc import Iterator

from engine.errors import SettingsError, StorageError
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted
from indexer.objects.s3 import BucketObjects

__all__ = ["check_thumbnails"]

_SECONDS = 5.0


def check_thumbnails(examined: Examined) -> Iterator[Finding]:
    """Whether thumbnails in the bucket can be listed and read, and whether it keeps versions of
    deleted ones; nothing where they lie in the data folder. Nothing is put there."""
    storage = examined.settings.storage
    if storage.thumbnails is None:
        return
    thing = f"thumbnails {storage.thumbnails}"
    seconds = min(_SECONDS, storage.timeout_seconds)
    quick = storage.model_copy(update={"timeout_seconds": seconds, "attempts": 1})
    try:
        objects = BucketObjects(quick)
    except SettingsError as error:
        yield Finding("thumbnails", "error", thing, *parted(error, "correct the settings"))
        return
    try:
        name = next(objects.names(), None)
        if name is not None:
            objects.get(name)
        keeps = objects.keeps_versions
    except (StorageError, SettingsError) as error:
        yield Finding("thumbnails", "error", thing, *parted(error, "correct the settings"))
    else:
        if keeps is False:
            yield Finding("thumbnails", "ok", thing, "they can be listed and read")
        else:
            yield Finding("thumbnails", "warning", thing, *_of_versions(keeps))
    finally:
        objects.close()
    left = examined.data_dir.thumbnails
    if left.is_dir():
        yield Finding(
            "thumbnails.left",
            "warning",
            str(left),
            "thumbnails lie in the data folder too, where nothing shows or deletes them",
            f"copy them to {storage.thumbnails} if they are not there, and remove the folder",
        )


def _of_versions(keeps: bool | None) -> tuple[str, str]:
    if keeps is None:
        return (
            "they can be listed and read; whether the bucket keeps versions may not be asked",
            "let the key ask it (s3:GetBucketVersioning), or `precedent erase` cannot tell either",
        )
    return (
        "the bucket keeps versions of what is deleted; `precedent erase` removes them, `precedent "
        "delete` does not",
        "let the bucket expire versions that are not current, or switch versioning off",
    )

"""Whether images have the UIDs under which the hospital's systems know them."""

from engine.records import ImageRecord
from engine.settings import Settings

__all__ = ["why_unknown"]


def why_unknown(record: ImageRecord, settings: Settings) -> str | None:
    """Why no other system knows an image by the UIDs that the index has; None = they do."""
    name = record.source or "folder"
    source = settings.sources.get(name)
    if source is None or source.uids == "kept":
        return None
    return (
        f"the UIDs of source {name!r} were replaced before it was indexed (setting "
        f'sources.{name}.uids = "replaced"), so no other system knows its images by them'
    )

"""Whether images have the UIDs under which the hospital's systems know them."""

from engine.records import ImageRecord
from engine.settings import Settings

__all__ = ["sources_unknown", "why_unknown"]


def why_unknown(record: ImageRecord, settings: Settings) -> str | None:
    """Why no other system knows an image by the UIDs that the index has; None = they do."""
    name = record.source or "folder"
    if name not in sources_unknown(settings):
        return None
    return (
        f"the UIDs of source {name!r} were replaced before it was indexed (setting "
        f'sources.{name}.uids = "replaced"), so no other system knows its images by them'
    )


def sources_unknown(settings: Settings) -> tuple[str, ...]:
    """The sources of whose images no other system knows the UIDs."""
    return tuple(name for name, one in settings.sources.items() if one.uids != "kept")

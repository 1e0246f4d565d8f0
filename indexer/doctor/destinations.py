"""Checks of the destinations of DICOM documents: their credentials, and whether they answer."""

from collections.abc import Iterator

from engine.documents_settings import Destination, DicomDestination
from engine.errors import SettingsError
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted
from indexer.documents.delivery import Unreachable

__all__ = ["check_destinations"]

_SECONDS = 5.0


def check_destinations(examined: Examined) -> Iterator[Finding]:
    """Whether what each destination needs can be read; and, if they may be asked, whether they
    answer."""
    for name, destination in examined.settings.destinations.items():
        seconds = min(_SECONDS, destination.timeout_seconds)
        to: Destination = destination.model_copy(update={"timeout_seconds": seconds})
        thing = f"destination {name}"
        try:
            answered = _looked_at(name, to, asked=examined.destinations)
        except SettingsError as error:
            yield Finding("destinations", "error", thing, *parted(error, "correct the settings"))
        except Unreachable as error:
            said, _, way_out = error.words.partition(": ")
            way_out = way_out or f"see that it runs, and check destinations.{name}"
            yield Finding("destinations", "error", thing, said, way_out)
        else:
            yield Finding("destinations", "ok", thing, answered)


def _looked_at(name: str, to: Destination, *, asked: bool) -> str:
    """What was found. Raises SettingsError, Unreachable: something is wrong."""
    # Imported here, as they load a neural network.
    from indexer.documents import cstore, stow

    if isinstance(to, DicomDestination):
        if not asked:
            cstore.check(name, to)
            return "not asked; --destinations asks it"
        cstore.echo(name, to)
        return "it answers C-ECHO"
    if not asked:
        stow.check(name, to)
        return "not asked; --destinations asks it"
    return f"it answers (HTTP {stow.reach(name, to)})"

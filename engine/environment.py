"""Tells misspelt ``PRECEDENT_…`` variables, which would be ignored, from those of others."""

import logging
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

__all__ = ["NOT_SETTINGS", "nearest", "warn_of_unknown"]

NOT_SETTINGS = frozenset(
    {
        "PRECEDENT_CONFIG",  # names the settings file
        "PRECEDENT_DEMO_EXIT",
        # Of docker/compose.yaml, for the composition and not for what runs in it.
        "PRECEDENT_BIND",
        "PRECEDENT_CONFIG_FILE",
        "PRECEDENT_GPU_IMAGE",
        "PRECEDENT_IMAGE",
        "PRECEDENT_PORT",
        "PRECEDENT_RECEIVE_BIND",
        "PRECEDENT_RECEIVE_PORT",
    }
)
"""Variables with our prefix that are no settings."""

_OF_TESTS = "PRECEDENT_TEST_"
# What Kubernetes sets in every container for services called precedent or precedent-….
_OF_SERVICES = re.compile(
    r"PRECEDENT_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
_told: set[str] = set()

_log = logging.getLogger(__name__)


def warn_of_unknown(variables: Iterable[str], settings: Collection[str]) -> None:
    """Logs one warning that names the variables that are neither settings nor known to be others'.

    A variable is told of once in a process.

    Args:
        variables: names in the environment. settings: variables of settings, in upper case.
    """
    unknown = []
    for name in sorted(variables):
        whole = name.upper()
        if not whole.startswith("PRECEDENT_") or whole in _told or _is_known(whole, settings):
            continue
        _told.add(whole)
        meant = nearest(whole, settings)
        unknown.append(name + (f" (is {meant} meant?)" if meant else ""))
    if unknown:
        _log.warning(
            "no setting is called %s; what is no setting has no effect", ", ".join(unknown)
        )


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that is most like this one; None = none is much like it."""
    found = get_close_matches(name, sorted(known), 1, 0.75)
    return found[0] if found else None


def _is_known(name: str, settings: Collection[str]) -> bool:
    # Of a section, whatever follows is checked with the section's settings.
    sections = {one.partition("__")[0] for one in settings}
    return (
        name in NOT_SETTINGS
        or name.startswith(_OF_TESTS)
        or name.partition("__")[0] in sections
        or _OF_SERVICES.fullmatch(name) is not None
    )

"""Runs checks one after another. One that crashes is a finding, and the others still run."""

from collections.abc import Callable, Iterator, Mapping

from engine.errors import PrecedentError
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding, parted

__all__ = ["CheckOf", "findings"]

CheckOf = Callable[[Examined], Iterator[Finding]]
"""Looks at one thing, and yields what it finds of it."""


def findings(checks: Mapping[str, CheckOf], examined: Examined) -> Iterator[Finding]:
    """What all checks find, in their order.

    Args:
        checks: by the name that a finding has if the check itself fails.
    """
    for name, check in checks.items():
        try:
            yield from check(examined)
        except PrecedentError as error:
            said, way_out = parted(error, "put that right, and look again")
            yield Finding(name, "error", name, said, way_out)
        except Exception as error:  # whatever is broken, the others are still to be looked at
            # Its message may quote what belongs to patients.
            yield Finding(
                name,
                "error",
                name,
                f"the check itself failed ({type(error).__name__})",
                "what it looks at is broken in a way that it does not know; the log of the service "
                "may say more",
            )

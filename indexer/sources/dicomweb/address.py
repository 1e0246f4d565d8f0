"""The address of an instance on a DICOMweb server: the three UIDs of a WADO-RS URL."""

import re
from dataclasses import dataclass

__all__ = ["Address", "is_uid"]


def is_uid(value: object) -> bool:
    """Whether ``value`` is a UID that is safe in a URL: no component is empty, so none is ".."."""
    return (
        isinstance(value, str)
        and len(value) <= 64
        and re.fullmatch(r"[0-9]+(\.[0-9]+)*", value, re.ASCII) is not None
    )


@dataclass(frozen=True, slots=True)
class Address:
    """An instance on a server, by its Study, Series and SOP Instance UID."""

    study: str
    series: str
    sop: str

    @classmethod
    def of(cls, locator: str, base: str) -> "Address | None":
        """The address of a locator on the server at ``base``; None = it is no such locator."""
        names = locator.removeprefix(f"{base}/studies/").split("/")
        if len(names) != 5 or not all(map(is_uid, names[::2])):
            return None
        found = cls(*names[::2])
        return found if found.locator(base) == locator else None

    def series_url(self, base: str) -> str:
        return f"{base}/studies/{self.study}/series/{self.series}"

    def locator(self, base: str) -> str:
        """The URL of the instance."""
        return f"{self.series_url(base)}/instances/{self.sop}"

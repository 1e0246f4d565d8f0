"""Renders the templates of the search page."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["Pages", "pages"]

_TEMPLATES = Path(__file__).parent / "templates"


class Pages:
    """The templates of the page. All values are escaped: labels and filter terms are untrusted."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["grouped"] = "{:,}".format
        self._environment.filters["sentence"] = _sentence

    def render(self, template: str, values: dict[str, Any]) -> str:
        """The HTML of a template. ``values`` must have every name that the template uses."""
        return self._environment.get_template(template).render(values)


@cache
def pages() -> Pages:
    """The templates; every call returns the same object."""
    return Pages()


def _sentence(text: str) -> str:
    """An error message, which begins in lower case, as a sentence."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."

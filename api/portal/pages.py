"""Templates → HTML."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["Pages", "pages"]

_TEMPLATES = Path(__file__).parent / "templates"


class Pages:
    """The page's templates. Every value is escaped: labels and filter terms are anybody's text."""

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
        """The HTML of a template, which must be given every name that it uses."""
        return self._environment.get_template(template).render(values)


@cache
def pages() -> Pages:
    """The templates, read once."""
    return Pages()


def _sentence(text: str) -> str:
    """An error's message, which begins in lower case so that it may follow a colon."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."

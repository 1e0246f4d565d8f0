"""Renders the templates of the pages."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from api.portal import catalogues

__all__ = ["TEMPLATES", "Pages", "html_page", "pages"]

TEMPLATES = Path(__file__).parent / "templates"


class Pages:
    """The templates of the page, in the language that is spoken. All values are escaped: labels and
    filter terms are untrusted."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        self._environment.policies["ext.i18n.trimmed"] = True
        translations: Any = self._environment
        translations.install_gettext_callables(
            catalogues.gettext,
            catalogues.ngettext,
            newstyle=True,
            pgettext=catalogues.pgettext,
            npgettext=catalogues.npgettext,
        )
        for name in ("grouped", "decimal", "general", "moment", "period"):
            self._environment.filters[name] = getattr(catalogues, name)
        self._environment.filters["sentence"] = _sentence
        self._environment.filters["coded"] = _coded
        # Of words that the code has marked for the catalogues. Other ones stay English.
        self._environment.filters["translated"] = catalogues.gettext
        self._environment.tests["untranslated"] = _is_untranslated
        self._environment.globals["language"] = catalogues.language

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """The HTML of a template. ``values`` must have every name that the template uses."""
        return self._environment.get_template(template).render(values)


@cache
def pages() -> Pages:
    """The templates; every call returns the same object."""
    return Pages()


def html_page(
    template: str,
    values: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    varies: str = "Cookie, Accept-Language",
) -> HTMLResponse:
    """The page of a template, which says its language. varies: headers of the request that it
    depends on."""
    told = {**(headers or {}), "Content-Language": catalogues.language(), "Vary": varies}
    return HTMLResponse(pages().render(template, values), status, told)


def _is_untranslated(text: str) -> bool:
    """Whether a text is shown in English on a page in another language."""
    return catalogues.language() != catalogues.SOURCE and catalogues.gettext(text) == text


def _coded(text: str) -> Markup:
    """The text with what stands between backticks as code."""
    code = Markup("<code>{}</code>")
    parts = enumerate(text.split("`"))
    return Markup("").join(code.format(part) if at % 2 else escape(part) for at, part in parts)


def _sentence(text: str) -> str:
    """An error message, which begins in lower case, as a sentence."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."

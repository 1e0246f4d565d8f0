"""The pages in German: which language is chosen, what they say in it, and that nothing is left."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from babel.messages.catalog import Catalog
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient
from test_api_page import HOSTILE_LABEL, Page, evidence
from test_embedding import ORIGIN, STUDY, asked, bearer

from api.http.problems import _KINDS
from api.portal.catalogues import (
    LANGUAGES,
    decimal,
    general,
    gettext,
    grouped,
    moment,
    ngettext,
    period,
    speaking,
)
from api.portal.language import preferred
from api.portal.pages import TEMPLATES
from api.portal.problem_words import PROBLEMS
from api.portal.words import evidence_sentence, verdict
from api.schemas import OodDocument
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from bench import catalogues
from engine.search.sizes import Size
from engine.settings import ServerSettings
from indexer.ledger.database import Database

GERMAN = {"Accept-Language": "de-AT,de;q=0.9,en;q=0.5"}


def opened(client: TestClient, address: str = "/", **headers: str) -> Page:
    answer = client.get(address, headers=headers or GERMAN)
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


def said(page: Page) -> str:
    return re.sub(r"\s+", " ", page.text)


# Catalogues.


def test_every_word_is_translated() -> None:
    for language in set(LANGUAGES) - {"en"}:
        assert catalogues.missing(language) == []
    assert len(catalogues.extracted()) > 500


def test_what_is_wrong_with_a_catalogue_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    words, known = Catalog(locale="de"), Catalog(locale="de")
    for text in ("new", "bare", "unsure", "%(count)s of %(all)s", "<b>bold</b>", "right"):
        words.add(text)
    words.add(("one image", "images"))
    known.add("bare", "")
    known.add("unsure", "unsicher", flags=["fuzzy"])
    known.add("%(count)s of %(all)s", "%(count)s von %(total)s")
    known.add("<b>bold</b>", "fett")
    known.add(("one image", "images"), ("ein Bild", ""))
    known.add("right", "richtig")
    known.add("gone", "weg")
    monkeypatch.setattr(catalogues, "extracted", lambda: words)
    monkeypatch.setattr(catalogues, "catalogue", lambda _: known)
    told = "\n".join(catalogues.missing("de"))
    for name in ("new", "bare", "unsure", "%(total)s", "fett", "one image", "gone"):
        assert name in told
    assert "'right'" not in told
    # What is written anew has what the code says, and nothing that was only guessed.
    written = catalogues.renewed("de")
    assert (written.get("right").string, written.get("unsure").string) == ("richtig", None)
    assert written.get("gone") is None


# Names, units and commands, which are the same in every language.
_SAME = re.compile(
    r"Precedent|CSV|FHIR|PDF|SHA-256|UIDs?|Study Instance|SOP Instance|MB|accesses\.ndjson"
)
_TEXT = re.compile(r"[^\W\d_]{2,}[^<>]*")
_SAID = re.compile(r'\b(?:aria-label|alt|title|placeholder)="([^"]*)"')


def unmarked(template: str) -> list[str]:
    """Words in a template that no catalogue can translate."""
    text = re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
    text = re.sub(r"\{% trans\b.*?%\}.*?\{% endtrans %\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", "", text, flags=re.DOTALL)
    shown = re.sub(r"<code>.*?</code>|<!doctype[^>]*>", "", text, flags=re.DOTALL)
    words = [*re.split(r"<[^>]*>", shown), *_SAID.findall(shown)]
    return [word for one in words if (word := one.strip(" \n·–:,.×#()")) and not known_by_all(word)]


def known_by_all(words: str) -> bool:
    return _TEXT.search(_SAME.sub("", words)) is None


def test_templates_have_no_words_that_are_not_translated() -> None:
    assert unmarked('<p title="Here">{{ _("x") }} and <b>bold</b></p>') == ["and", "bold", "Here"]
    paths = sorted(TEMPLATES.glob("*.html"))
    assert len(paths) > 20
    assert {one.name: left for one in paths if (left := unmarked(one.read_text()))} == {}


def test_every_problem_has_a_title_in_every_language() -> None:
    titles = {kind.title for kind in _KINDS.values()}
    assert titles <= set(PROBLEMS)
    with speaking("de"):
        assert not [one for one in PROBLEMS if gettext(one) == one]


def test_settings_name_the_languages_that_there_are() -> None:
    assert set(get_args(ServerSettings.model_fields["language"].annotation)) == set(LANGUAGES)


# The language of a request.


@pytest.mark.parametrize(
    ("sent", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("DE-at", "de"),
        ("fr-CH, fr;q=0.9, de;q=0.7, en;q=0.8", "en"),
        ("fr, de;q=0.3", "de"),
        ("fr", "en"),
        ("de;q=0, *", "en"),
        ("en;q=0, *;q=0.1", "de"),
        ("*", "en"),
        ("de;q=0.0001, en;q=2", "en"),
        ("de;q=nan, de;q=-1, de;q=1.5, de;q=, ;, ,,", "en"),
        ("de;q=0.5;q=1", "en"),
        ("../../de, de\x00, d€, dé", "en"),
        ("de," * 100_000, "en"),
        ("a-" * 400, "en"),
    ],
)
def test_the_language_is_what_a_browser_prefers(sent: str, language: str) -> None:
    assert preferred(sent, "en") == language


def test_without_a_language_that_is_spoken_the_settings_decide() -> None:
    assert preferred("fr", "de") == preferred("", "de") == preferred("*", "de") == "de"
    assert preferred("en-GB", "de") == "en"


def test_a_hostile_header_gets_a_page(client) -> None:
    for sent in ("de;q=1e999", "x" * 5000, "de;q=0." + "9" * 3000, '"><script>', "\xff\xfe"):
        answer = client.get("/login", headers={"Accept-Language": sent.encode("latin-1")})
        assert answer.status_code in (200, 303)
    answer = client.get("/archive", headers={"Accept-Language": "de;q=0.5, " + "en," * 90_00})
    assert answer.status_code in (200, 431)


def test_a_language_is_chosen_by_a_link_and_kept(client) -> None:
    first = client.get("/?where=modality%3DCT", headers={"Accept-Language": "fr"})
    assert (first.headers["content-language"], "set-cookie" in first.headers) == ("en", False)
    assert {"Cookie", "Accept-Language"} <= set(first.headers["vary"].split(", "))
    page = Page(first.text)
    assert page.all("html", lang="en")
    (link,) = page.all("a", lang="de")
    assert link["hreflang"] == "de"
    assert link["href"] == "?where=modality%3DCT&lang=de"
    german = client.get("/" + link["href"])
    assert Page(german.text).all("html", lang="de")
    cookie = german.headers["set-cookie"]
    for part in ("HttpOnly", "Secure", "Path=/", "SameSite=lax"):
        assert part in cookie.split("; ")
    kept = {"Cookie": cookie.partition(";")[0], "Accept-Language": "en"}
    page = opened(client, "/archive", **kept)
    assert page.all("html", lang="de")
    # The way back is of the same kind, and what is in the address comes first.
    (link,) = page.all("a", lang="en")
    back = client.get("/archive" + (link["href"] or ""), headers=kept)
    assert Page(back.text).all("html", lang="en")
    assert back.headers["set-cookie"].startswith("__Host-precedent-language=en;")


@pytest.mark.parametrize("asked", ["fr", "de-AT", "DE", "", "../en", "<b>"])
def test_a_language_that_is_not_spoken_counts_for_nothing(client, asked: str) -> None:
    cookie = {"Cookie": f"__Host-precedent-language={asked}"}
    answer = client.get("/", params={"lang": asked}, headers={**cookie, "Accept-Language": "de"})
    assert Page(answer.text).all("html", lang="de")
    assert "set-cookie" not in answer.headers


def test_an_answer_to_an_upload_is_shown_again_in_another_language(client, indexed) -> None:
    file = {"file": indexed.files["ct"][0].read_bytes()}
    sent = client.post("/", files=file, data={"k": "2"}, headers=GERMAN)
    page = Page(sent.text)
    assert "2 ähnliche Bilder" in page.text
    (link,) = page.all("a", lang="en")
    again = client.get("/" + (link["href"] or "").removeprefix("./"))
    assert "2 similar images" in Page(again.text).text


# What the pages say.


def test_a_search_in_german(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    page = opened(client, f"/?like={own}&k=5&exclude_own=none")
    text = said(page)
    for words in ("5 ähnliche Bilder", "Filter", "Körperregion", "Modalität", "Passt nicht"):
        assert words in text
    for words in ("Keine Einschätzung.", "Untersuchung", "Abweichende Bits", "Kein Medizinprodukt"):
        assert words in text
    hit = client.post("/v1/search", json={"id": own, "k": 5}).json()["hits"][1]
    assert f"{hit['similarity']:.3f}".replace(".", ",") in text
    # What DICOM says is said as it is, and what a page is told is none of a catalogue's.
    assert "CT CHEST" in text
    assert HOSTILE_LABEL in said(opened(client))
    assert page.all("meter", **{"aria-label": "Wie ähnlich"})
    # Numbers that are read by machines have points.
    assert all("," not in (one["value"] or "") for one in page.all("meter"))


def test_every_page_is_german_and_says_so(client, indexed, id_of) -> None:
    own = id_of(indexed.files["ct"][0])
    other = id_of(indexed.files["ct"][2])
    pages = {
        f"/images/{own}": "Angaben im Index",
        f"/studies/{STUDY}": "Ähnliche Fälle",
        f"/compare?left={own}&right={other}": "Nebeneinander",
        f"/collection?image={own}&like={other}": "1 Bild gesammelt",
        "/archive": "35 Bilder aus 35 Dateien",
        "/archive/duplicates": "nahezu gleich",
        "/model": "Kalibrierung",
    }
    for address, words in pages.items():
        page = opened(client, address)
        assert page.all("html", lang="de"), address
        assert words in said(page), address
    image = opened(client, f"/images/{own}?window=1500.5&level=-600")
    assert image.all("input", name="window")[0]["value"] == "1500.5"
    wrong = client.get("/studies/1.9.9", headers=GERMAN)
    assert (wrong.status_code, "Dieses Bild gibt es nicht" in wrong.text) == (404, True)
    # The detail is of this one request, in English, and says so.
    assert Page(wrong.text).all("p", lang="en")
    assert client.get("/v1/images/none", headers=GERMAN).json()["title"] == "No such image"


def test_verdicts_and_figures_in_german() -> None:
    found = OodDocument(
        verdict="foreign",
        foreign=True,
        p=0.01234,
        alpha=0.03,
        scores={},
        p_values={"knn": 0.5},
        p_elsewhere=None,
        level=None,
    )
    how_found = evidence(
        "codes", 12, candidates=1300, rendered_otherwise=1, timings_ms={"all": 1234.4}
    )
    with speaking("de"):
        told = verdict(found)
        how = evidence_sentence(how_found, Size(35_000, estimated=True), filtered=True)
    assert told.title.startswith("Außerhalb dessen")
    assert told.figures == "p = 0,0123, nicht über 0,03; knn 0,5"
    assert "1.300" in how
    assert "etwa 35.000 Bilder, die zu den Filtern passen" in how
    assert how.endswith(
        "1 Treffer stammt aus einer anderen Version der Bilddarstellung; "
        "`precedent index --again` erneuert die Bilder; 1.234 ms."
    )
    assert verdict(found).figures == "p = 0.0123, at or below 0.03; knn 0.5"


def test_numbers_and_dates_are_of_the_language() -> None:
    at = "2026-03-01T07:05:09+01:00"
    assert (grouped(1234567), decimal(1234.5, 3), general(0.00001234, 3)) == (
        "1,234,567",
        "1,234.500",
        "1.23e-05",
    )
    assert (moment(at), period("2026-11"), period("2026-11-30")) == (
        "2026-03-01 06:05",
        "2026-11",
        "2026-11-30",
    )
    with speaking("de"):
        assert (grouped(1234567), decimal(-0.5, 2), decimal(2.5, 0)) == ("1.234.567", "-0,50", "2")
        assert general(0.0312, 3) == "0,0312"
        assert moment(at) == "01.03.2026, 06:05"
        assert moment(at, seconds=True) == "01.03.2026, 06:05:09"
        assert (period("2026-11"), period("2026-11-30")) == ("Nov. 2026", "30.11.2026")
        assert period("none") == "none"
        assert ngettext("%(count)s image", "%(count)s images", 1) == "%(count)s Bild"
    assert gettext("Archive") == "Archive"


@pytest.fixture
def signed(indexed, tmp_path: Path) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A service with keys, and one that may do everything."""
    settings = indexed.copy(tmp_path / "data")
    server = settings.server.model_copy(update={"language": "de"})
    settings = settings.model_copy(update={"server": server})
    with Database(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}") as database:
        _, key = Keys(database).create("Station 3", list(Scope))
        _, narrow = Keys(database).create("narrow", [Scope.SEARCH])
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield client, {"all": key, "narrow": narrow}


def test_pages_of_administrators_and_embedded_ones(
    signed: tuple[TestClient, dict[str, Any]],
) -> None:
    client, keys = signed
    headers = bearer(keys["all"])
    # The settings say German, and no browser has asked for another one.
    assert "Anmelden" in client.get("/login").text
    assert "Sign in" in client.get("/login", headers={"Accept-Language": "en"}).text
    wrong = client.post("/login", data={"key": "none"})
    assert "ist nicht gültig" in wrong.text
    page = Page(client.get("/keys", headers=headers).text)
    assert "Schlüssel von default" in page.text
    assert "gültig" in page.text
    log = Page(client.get("/audit", headers=headers).text)
    assert "Zugriffsprotokoll" in log.text
    assert re.search(r"\d\d\.\d\d\.\d{4}, \d\d:\d\d:\d\d", log.text)
    jobs = Page(client.get("/jobs", headers=headers).text)
    assert "Aufträge" in jobs.text
    for one in jobs.all("ol", **{"class": "jobs"}):
        words = json.loads(one["data-words"] or "")
        assert words["read"].startswith("{done} von {total} gelesen")
        assert words["running"] == "läuft"
    refused = client.get("/keys", headers={**bearer(keys["narrow"]), "Accept": "text/html"})
    assert refused.status_code == 403
    assert "Das ist nicht erlaubt" in refused.text
    # A page of another site has a parameter, or what the browser says, and no cookie.
    made = client.post("/v1/embed-tokens", headers=headers, json=asked()).json()["token"]
    kept = {"Cookie": "__Host-precedent-language=en", "Origin": ORIGIN}
    shown = client.post("/embed", data={"token": made}, headers={**kept, "Accept-Language": "de"})
    assert Page(shown.text).all("html", lang="de")
    assert "ähnliche" in shown.text
    assert (shown.headers["vary"], "set-cookie" in shown.headers) == ("Accept-Language", False)
    english = client.post("/embed", data={"token": made, "lang": "en"}, headers=kept)
    assert Page(english.text).all("html", lang="en")
    empty = client.get("/embed", params={"parent": ORIGIN, "lang": "de"})
    (main,) = Page(empty.text).all("main")
    assert "abgelaufen" in (main["data-ended"] or "")
    assert "{status}" in (main["data-answered"] or "")
    assert "set-cookie" not in empty.headers

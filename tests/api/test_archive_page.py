"""The pages of the archive and of its duplicates, and the routes of what they show."""

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi.testclient import TestClient
from services.loopback import LoopbackClient
from test_api_page import Page

from api.http.routes.archive import GrowthDocument, MapPointDocument, PeriodDocument
from api.portal import archive as archive_page
from api.portal.charts import columns, keys
from api.security.keys import Keys
from api.security.policy import Scope
from api.security.way_back import known_page
from api.service import create_service
from engine.errors import RefusalReason
from engine.records import Point
from engine.settings import Settings
from engine.store.base import Filter, Ids
from indexer.archive import Archive
from indexer.ledger.database import Database
from indexer.ledger.instances import Ledger, Refused
from indexer.sources.base import Discovered

ROOT = Path(__file__).parents[2]
MARKUP = '"><IMG SRC=X ONERROR=ALERT(1)>{{7*7}}'
AT = "2026-11-30T08:00:00+00:00"
ROUTES = (
    *("/v1/archive/map", "/v1/archive/growth", "/v1/archive/refusals"),
    *("/archive", "/archive?colour=labels", "/archive/duplicates", "/model", "/v1/model/drift"),
)


@dataclass(frozen=True)
class Site:
    """A service of two tenants. sent: headers by kind of caller. ids: of the images, by tenant."""

    client: TestClient
    settings: Settings
    sent: dict[str, dict[str, str]]
    ids: dict[str, set[str]]

    def get(self, who: str, address: str, **params: Any) -> Any:
        answer = self.client.get(address, params=params or None, headers=self.sent[who])
        assert answer.status_code == 200, answer.text
        return answer

    def page(self, who: str, address: str, **params: Any) -> Page:
        return Page(self.get(who, address, **params).text)

    def told(self, who: str, address: str, **params: Any) -> Any:
        return self.get(who, address, **params).json()


def theirs(points: list[Point]) -> list[Point]:
    """Of the other tenant: each picture twice, in two studies, with markup in every field."""
    made = []
    for number, point in enumerate(points):
        for copy in range(2):
            record = replace(
                point.record,
                tenant="north",
                study=f"1.9.{number}.{copy}",
                modality=f"{MARKUP}{number % 9}",
                body_part=MARKUP,
                labels=(f"<svg onload=alert(1)>{number}",),
                study_year=1990 + number,
                source=MARKUP,
            )
            name = str(uuid.uuid5(uuid.UUID(point.id), str(copy)))
            made.append(replace(point, id=name, record=record))
    return made


def refuse(database: Database, tenant: str, refused: list[Refused]) -> None:
    ledger = Ledger(database.of(tenant))
    run = ledger.begin_run("folder", AT)
    found = [Discovered(one.locator, 10, 1, None) for one in refused]
    ledger.discover(run, "folder", found)
    ledger.finish(run, refused, AT)


@pytest.fixture(scope="module")
def site(indexed, store_root: Path) -> Iterator[Site]:
    settings: Settings = indexed.copy(store_root / "data")
    with Archive(settings) as archive:
        points = list(archive.store.scroll(Filter(), with_z=True))
        others = theirs(points[:12])
        archive.of("north").store.upsert(others)
        archive.store.flush()
    ids = {"default": {one.id for one in points}, "north": {one.id for one in others}}
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        mine = [
            Refused(f"file:///images/Doe%20{n}", RefusalReason.TRUNCATED, f"first-party {n}")
            for n in range(5)
        ]
        mine.append(Refused("file:///images/z", RefusalReason.DAMAGED, "first-party", "1.2.77"))
        refuse(database, "default", mine)
        other = Refused("file:///theirs", RefusalReason.TOO_SMALL, f"second-party {MARKUP}")
        refuse(database, "north", [other])
        made = Keys(database)
        search, admin = [Scope.SEARCH], [Scope.SEARCH, Scope.ADMIN]
        written = {
            "default": made.create("a", search)[1],
            "admin": made.create("b", admin)[1],
            "north": made.create("c", search, tenant="north")[1],
            "nobody": made.create("d", search, tenant="nobody")[1],
        }
    sent = {name: {"Authorization": f"Bearer {key}"} for name, key in written.items()}
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield Site(client, settings, sent, ids)


def test_every_count_leads_to_the_search_for_it(site: Site) -> None:
    page = site.page("default", "/archive")
    assert "35 images of 35 files, 6 refused" in re.sub(r"\s+", " ", page.text)
    for value, count in (("CT", 6), ("MR", 4)):
        (link,) = {one["href"] for one in page.all("a", href=f"./?where=modality%3D{value}")}
        found = site.page("default", f"/{link}")
        assert f"one of the {count} images" in re.sub(r"\s+", " ", found.text)
        assert re.search(rf"{value}\s+{count}\b", page.text)
    # Years have their own order, and no bar stands for a number that is not written.
    years = re.findall(r"where=study_year%3D(\d+)", site.get("default", "/archive").text)
    assert years[:10] == sorted(years[:10]) == [str(2010 + n) for n in (*range(6), *range(10, 14))]
    assert "Not known of any image: View, Side, Sex, Age, Manufacturer." in page.text


def test_the_map_shows_the_tenants_images_and_leads_to_what_is_like_them(site: Site) -> None:
    page = site.page("default", "/archive")
    links = [one for one in page.all("a", tabindex="-1") if "like=" in (one["href"] or "")]
    shown = {(one["href"] or "").removeprefix("./?like=") for one in links}
    assert shown == site.ids["default"]
    found = site.page("default", f"/{links[0]['href']}")
    assert "similar image" in found.text
    # By keyboard and without JavaScript: of each square a picture that can be reached.
    listed = [one["href"] or "" for one in page.all("a", **{"class": "picture"})]
    assert listed
    assert {one.removeprefix("./?like=") for one in listed} <= site.ids["default"]
    assert all(image["alt"] for image in page.all("img"))
    told = site.told("default", "/v1/archive/map")
    assert len(listed) == len(told["regions"])
    assert sum(one["images"] for one in told["regions"]) == len(told["points"]) == told["images"]
    assert all(0 <= one[axis] <= 1 for one in told["points"] for axis in "xy")
    assert 0 < sum(told["kept"]) <= 1
    assert len(site.told("default", "/v1/archive/map", limit=5)["points"]) <= 5
    for wrong in (0, 1001):
        refused = site.client.get(f"/v1/archive/map?limit={wrong}", headers=site.sent["default"])
        assert refused.status_code == 400


def test_the_map_is_coloured_as_the_reader_chooses(site: Site) -> None:
    by_label = site.page("default", "/archive", colour="labels")
    (chosen,) = by_label.all("a", **{"aria-current": "true"})
    assert chosen["href"] == "archive?colour=labels#map"
    legend = re.sub(r"\s+", " ", by_label.text)
    for label, count in (("stripes", 14), ("rings", 10)):
        assert f"{label} {count} " in legend
        assert by_label.all("a", href=f"./?where=labels%3D{label}")
    offered = {one["href"] for one in by_label.all("a") if "colour=" in (one["href"] or "")}
    assert "archive?colour=modality#map" in offered
    assert "archive?colour=sex#map" not in offered
    used = {one["href"] for one in by_label.all("use")}
    assert len(used) >= 5
    unknown = site.page("default", "/archive", colour="modality")
    assert "Not known 25" in re.sub(r"\s+", " ", unknown.text)
    wrong = site.client.get("/archive?colour=shoe_size", headers=site.sent["default"])
    assert (wrong.status_code, wrong.headers["content-type"][:9]) == (400, "text/html")


@pytest.mark.parametrize("address", ROUTES)
def test_nothing_of_another_tenant_is_shown(site: Site, address: str) -> None:
    for who, other in (("default", "north"), ("north", "default"), ("nobody", "default")):
        text = site.get(who, address).text
        assert not [one for one in site.ids[other] if one in text]
    assert "onload" not in site.get("default", address).text
    assert "second-party" not in site.get("default", address).text
    assert "first-party" not in site.get("north", address).text


def test_counts_are_each_tenants_own(site: Site) -> None:
    whose = {"default": (35, 35, 6), "north": (24, 0, 1), "nobody": (0, 0, 0)}
    for who, (images, timed, refused) in whose.items():
        assert site.told(who, "/v1/archive/map")["images"] == images
        growth = site.told(who, "/v1/archive/growth", by="day")
        assert sum(one["images"] for one in growth["periods"]) == timed
        assert growth["without_time"] == images - timed
        assert site.told(who, "/v1/archive/refusals")["instances"] == refused
    assert (
        "Of 24 images the ledger does not say when they were indexed."
        in site.page("north", "/archive").text
    )


def test_an_empty_archive_says_so(site: Site) -> None:
    page = site.page("nobody", "/archive")
    assert "The index is empty" in page.text
    assert not page.all("use")
    assert "No two images are the same picture" in site.page("nobody", "/archive/duplicates").text


def test_refusals_say_what_to_do_and_name_no_files(site: Site) -> None:
    page = site.page("default", "/archive")
    text = re.sub(r"\s+", " ", page.text)
    assert text.index("truncated 5 files") < text.index("damaged 1 file ")
    assert "Send it again from its source." in text
    assert "1.2.77" in text
    assert "Doe" not in text
    told = site.told("default", "/v1/archive/refusals", examples=1)
    assert [(one["reason"], one["instances"]) for one in told["refusals"]] == [
        ("truncated", 5),
        ("damaged", 1),
    ]
    assert [one["examples"] for one in told["refusals"]] == [
        [{"instance": None, "detail": "first-party 0", "sop": None}],
        [{"instance": None, "detail": "first-party", "sop": "1.2.77"}],
    ]
    named = site.told("admin", "/v1/archive/refusals")["refusals"][0]["examples"]
    assert [one["instance"] for one in named] == [f"/images/Doe {n}" for n in range(3)]
    refused = site.client.get("/v1/archive/refusals?examples=21", headers=site.sent["default"])
    assert refused.status_code == 400


def test_settings_in_advice_are_shown_as_code(site: Site) -> None:
    english = site.get("north", "/archive").text
    assert "Fewer than <code>limits.min_side</code> rows or columns." in english
    german = site.get("north", "/archive?lang=de").text
    assert "<code>limits.min_side</code>." in german
    assert "`limits" not in english + german


def test_what_an_archive_says_is_shown_and_never_run(site: Site) -> None:
    for address in (*ROUTES, "/archive?colour=modality", "/archive?colour=study_year"):
        answer = site.get("north", address)
        if "json" in answer.headers["content-type"]:
            continue
        page = Page(answer.text)
        assert {one.get("src") for one in page.all("script")} <= {
            "static/portal.js",
            "../static/portal.js",
        }
        for tag, attributes in page.tags:
            assert tag not in ("b", "iframe", "object", "base", "style", "foreignobject", "animate")
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert not (attributes.get("href") or "").lower().startswith("javascript:")
            if tag == "use":
                assert re.fullmatch(r"#m\d", attributes["href"] or "")
        assert all("v1/images/" in src for src in page.thumbnails())
        assert "unsafe" not in answer.headers["content-security-policy"]
    page = site.page("north", "/archive", colour="labels")
    assert "<svg onload=alert(1)>0" in page.text
    assert MARKUP in page.text
    # What is counted can be searched for, whatever it is called.
    (link,) = {one["href"] for one in page.all("a") if "body_part%3D" in (one["href"] or "")}
    assert "24 images" in site.page("north", f"/{link}").text


def test_duplicates_are_side_by_side_page_by_page(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def counted(*args: Any, **options: Any) -> Any:
        compared.append(1)
        # Drawn by chance, these pictures are so alike that the thresholds of real ones join them.
        return search(*args, **options, similarity=0.9999, max_bits=2)

    search = archive_page.duplicates
    monkeypatch.setattr(archive_page, "duplicates", counted)
    first = site.page("north", "/archive/duplicates", across_studies=True)
    assert "12 groups of images" in re.sub(r"\s+", " ", first.text)
    (following,) = first.all("a", rel="next")
    second = site.page("north", f"/archive/{following['href']}")
    assert len(compared) == 1
    seen = [src.split("/")[3] for page in (first, second) for src in page.thumbnails()]
    assert len(seen) == 24
    assert set(seen) == site.ids["north"]
    assert "Group 12" in second.text
    assert first.text.count("Identical to it") == 10
    pair = next(one["href"] or "" for one in first.all("a") if "compare" in (one["href"] or ""))
    assert site.page("north", "/" + pair.removeprefix("../")).all("img")
    study = next(one["href"] or "" for one in first.all("a") if "studies/" in (one["href"] or ""))
    assert "1.9." in site.page("north", "/" + study.removeprefix("../")).text
    wrong = site.client.get("/archive/duplicates?page=9", headers=site.sent["north"])
    assert wrong.status_code == 400
    narrowed = site.page("default", "/archive/duplicates", where="modality=CT")
    assert "of 6 that were compared (modality=CT)" in re.sub(r"\s+", " ", narrowed.text)


def test_what_was_deleted_is_shown_no_more_though_it_is_remembered(indexed, tmp_path: Path) -> None:
    """As many images as before are left: one comes where another one goes."""
    settings: Settings = indexed.copy(tmp_path / "data")
    with (
        Archive(settings) as archive,
        LoopbackClient(create_service(archive=archive)) as client,
    ):
        points = list(archive.store.scroll(Filter(), with_z=True))
        copy = str(uuid.UUID(int=1))
        archive.store.upsert([replace(points[0], id=copy)])
        before = {one["id"] for one in client.get("/v1/archive/map").json()["points"]}
        assert {copy, points[0].id} <= before
        assert copy in client.get("/archive/duplicates").text
        archive.store.delete(Filter((Ids((copy,)),)))
        archive.store.upsert([replace(points[0], id=str(uuid.UUID(int=2)))])
        after = client.get("/v1/archive/map").json()
        assert {one["id"] for one in after["points"]} == before - {copy}
        assert sum(one["images"] for one in after["regions"]) == len(after["points"])
        for address in ("/archive", "/archive/duplicates"):
            text = client.get(address).text
            assert copy not in text
        assert "removed since they were compared" in text


def test_growth_has_a_column_for_every_period_and_no_more() -> None:
    def growth(by: Any, *periods: tuple[str, int, int]) -> GrowthDocument:
        made = [PeriodDocument(period=p, images=n, in_all=a) for p, n, a in periods]
        return GrowthDocument(by=by, periods=made, without_time=0)

    days = columns(growth("day", ("2027-12-30", 2, 2), ("2028-01-02", 8, 10)))
    assert [(one.period, one.images, one.in_all, one.height) for one in days] == [
        ("2027-12-30", 2, 2, 25.0),
        ("2027-12-31", 0, 2, 0.0),
        ("2028-01-01", 0, 2, 0.0),
        ("2028-01-02", 8, 10, 100.0),
    ]
    months = columns(growth("month", ("2026-11", 1, 1), ("2027-02", 1, 2)))
    assert [one.period for one in months] == ["2026-11", "2026-12", "2027-01", "2027-02"]
    assert columns(growth("day")) == []
    assert len(columns(growth("month", ("0001-01", 1, 1), ("9999-12", 1, 2)))) < 1000


def test_a_legend_has_few_entries_and_counts_every_image() -> None:
    nothing = dict.fromkeys(MapPointDocument.model_fields)
    points = [
        MapPointDocument(
            **{
                **nothing,
                "id": str(n),
                "frame": 0,
                "labels": [f"label {n % 11}"] if n % 5 else [],
                "study_year": 2000 + n % 20,
                "x": 0.0,
                "y": 0.0,
            }
        )
        for n in range(100)
    ]
    for field in ("labels", "study_year", "sex"):
        legend, marked = keys(points, field)
        assert sum(one.count for one in legend) == 100
        assert len(legend) <= 9
        assert len({one.mark for one in legend}) == len(legend)
        assert set(marked.values()) <= set(range(7))
    years, _ = keys(points, "study_year")
    assert (years[0].text, years[-1].text) == ("2000 to 2002", "2017 to 2019")
    assert years[0].link == "./?where=study_year%3D2000..2002"
    labels, _ = keys(points, "labels")
    assert [one.text for one in labels[-2:]] == ["Other", "Not known"]


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lights = sorted((light(one), light(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def test_marks_stand_out_in_both_themes_and_by_their_shapes() -> None:
    style = (ROOT / "api" / "portal" / "static" / "style.css").read_text()
    shapes = (ROOT / "api" / "portal" / "templates" / "charts.html").read_text()
    drawn = dict(re.findall(r'<path id="m(\d)" d="([^"]+)"', shapes))
    assert len(drawn) == len(set(drawn.values())) == 9
    for theme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))
        for mark in (*(f"m{n}" for n in range(7)), "quiet", "accent", "edge"):
            assert _contrast(named[mark], named["card"]) >= 3, (mark, named[mark])


@pytest.mark.parametrize("page", ["archive", "archive?colour=sex", "archive/duplicates", "model"])
def test_who_signs_in_is_led_to_the_page_that_was_asked_for(site: Site, page: str) -> None:
    assert known_page(page) == page
    answer = site.client.get(f"/{page}")
    assert (answer.status_code, unquote(answer.headers["location"]).endswith(page)) == (303, True)
    assert known_page(f"/{page}") == known_page(f"evil.example/{page}") == ""

"""``--tenant``: each command acts for one tenant, and knows nothing of the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import run

from api.cli.options import tenant_of
from engine.errors import JobError, QueryError
from engine.settings import FolderSettings, Settings
from indexer.datadir.layout import DataDir


@pytest.fixture
def place(indexed, tmp_path: Path) -> list[object]:
    """Options of an archive in which the default tenant has 35 images, north two of them too."""
    settings = indexed.copy(tmp_path / "data")
    found = ["--data-dir", settings.data_dir, "--model", settings.model]
    told = run("index", *indexed.files["ct"][:2], "--tenant", "north", *found, "--json")
    assert json.loads(told)["indexed"] == 2
    return found


def asked(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_each_command_sees_one_tenant(place: list[object], indexed) -> None:
    north = [*place, "--tenant", "north"]
    for options, points in ((place, 35), (north, 2)):
        info = asked("info", *options)
        assert (info["points"], info["tenants"]) == (points, ["default", "north"])
    image = indexed.files["ct"][1]
    of_default = asked("search", image, "-k", 100, *place)
    of_north = asked("search", image, "-k", 100, *north)
    assert (len(of_default["hits"]), len(of_north["hits"])) == (35, 2)
    assert of_north["hits"][0]["path"] == of_default["hits"][0]["path"] == str(image)
    assert of_north["hits"][0]["id"] != of_default["hits"][0]["id"]
    # The image itself is left out under the id that it has for the tenant.
    liked = asked("recommend", image, "--exclude-own", "none", *north)
    assert [hit["id"] for hit in liked["hits"]] == [of_north["hits"][1]["id"]]
    told = asked("delete", "--study", "1.2.4.0", "--yes", *north)
    assert told == {"instances": 2, "points": 2}
    assert asked("info", *place)["points"] == 35
    # What one has deleted the other is still given.
    again = asked("index", *indexed.files["ct"][:2], *north)
    assert (again["indexed"], again["deleted"]) == (0, 2)
    assert asked("index", *indexed.files["ct"][:2], *place)["deleted"] == 0


def test_jobs_are_of_a_tenant(place: list[object], indexed) -> None:
    folder = place[:2]
    submitted = ("jobs", "submit", indexed.files["ct"][0].parent, *folder)
    job = asked(*submitted, "--tenant", "north")["job"]
    (listed, *_) = asked("jobs", "list", *folder, "--tenant", "north")["jobs"]
    assert listed["id"] == job
    assert job not in [one["id"] for one in asked("jobs", "list", *folder)["jobs"]]
    for command in ("show", "pause", "cancel", "retry"):
        with pytest.raises(JobError, match=f"no job {job}"):
            run("jobs", command, job, *folder)
    run("jobs", "cancel", job, *folder, "--tenant", "north")


def test_a_tenant_that_has_nothing_is_not_deleted(place: list[object]) -> None:
    with pytest.raises(QueryError, match=r"'south'; there are: default, north$"):
        run("delete", "--tenant", "south", "--yes", *place)


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 65, "ü"])
def test_a_name_that_no_tenant_has_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(QueryError, match="is no tenant; use up to 64"):
        run("info", f"--tenant={name}", "--data-dir", tmp_path)


def test_the_settings_may_give_a_source_to_a_tenant() -> None:
    clinic = FolderSettings(kind="folder", paths=(Path("/x"),), tenant="north")
    settings = Settings(sources={"clinic": clinic})
    assert tenant_of(None, settings, "clinic") == tenant_of("north", settings, "clinic") == "north"
    assert tenant_of(None, settings, "other") == tenant_of(None, settings) == "default"
    with pytest.raises(QueryError, match="give source 'clinic' to 'north'"):
        tenant_of("south", settings, "clinic")
    with pytest.raises(ValueError, match="is no tenant"):
        FolderSettings(kind="folder", paths=(), tenant="a b")


def test_what_is_received_for_tenants_lies_apart(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    assert data.received_for("default") == data.received
    places = {data.received_for(name) for name in ("default", "north", "ab", "received")}
    assert len(places) == 4
    assert not any(one.is_relative_to(data.received) for one in places - {data.received})

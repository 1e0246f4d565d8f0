"""The rows of commands, and ``precedent audit``: verify, export, search, forget."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import run
from fhir.resources.R4B.auditevent import AuditEvent
from services.loopback import LoopbackClient
from services.postgres import Postgres
from sqlalchemy import text
from typer.testing import CliRunner

from api.audit.log import COMMANDS as CHAIN, open_log
from api.audit.rows import Entry, Who
from api.audit.schema import AUDIT
from api.audit.verify import verify
from api.cli.accesses import RECORDED, UNRECORDED
from api.cli.main import COMMANDS, app
from api.service import create_service
from engine.errors import AuditError, QueryError
from engine.settings import LedgerSettings, Settings
from indexer.ledger.database import Database

BEGUN = 102


def lines(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json").splitlines()]


def exit_code(*arguments: object) -> int:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"}).exit_code


def ended(*arguments: object) -> tuple[object, str]:
    """The exit code that the command line gives, and what it prints."""
    options: dict[str, Any] = {"env": {"COLUMNS": "200"}, "standalone_mode": False}
    result = CliRunner().invoke(app, [*map(str, arguments)], **options)
    return result.return_value, result.output


def rows_of(settings: Settings) -> list[dict[str, Any]]:
    with open_log(settings) as log:
        return [row.document for row in log.between()]


@pytest.fixture
def site(indexed, tmp_path: Path) -> Settings:
    """An archive whose log is empty."""
    settings = indexed.copy(tmp_path / "data")
    for left in settings.data_dir.glob("audit.sqlite*"):
        left.unlink()
    return settings


def place(settings: Settings) -> tuple[object, ...]:
    return ("--data-dir", settings.data_dir)


def both(settings: Settings) -> tuple[object, ...]:
    return (*place(settings), "--model", settings.model)


def test_every_command_says_whether_it_leaves_a_row() -> None:
    names = set()
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        inner = getattr(group.get_command(None, name), "commands", None)
        names |= {name} if inner is None else {f"{name} {one}" for one in inner}
    assert names == RECORDED | UNRECORDED
    assert not RECORDED & UNRECORDED


def test_commands_leave_a_row_each(site: Settings, indexed) -> None:
    image = indexed.files["ct"][0]
    hits = lines("search", image, "-k", "3", *both(site))[0]["hits"]
    lines("recommend", "--study", "1.2.4.0", *both(site))
    made = lines("keys", "create", "ward", *place(site))[0]
    lines("keys", "revoke", made["id"], *place(site))
    run("info", *both(site))
    run("keys", "list", *place(site))
    lines("snapshot", site.data_dir.parent / "all", *both(site))
    lines("delete", "--study", "1.2.4.1", *both(site))
    assert exit_code("delete", "--study", "9.9", "--yes", *both(site)) == 1
    rows = rows_of(site)
    assert {row["chain"] for row in rows} == {CHAIN}
    # What cannot be undone, or goes into a file, has a row before as well.
    before = [row["action"] for row in rows if row["status"] == BEGUN]
    irrevocable = ("keys create", "keys revoke", "snapshot", "delete")
    assert before == [f"precedent {one}" for one in irrevocable]
    assert next(row["studies"] for row in rows if row["action"] == before[-1]) == ["1.2.4.1"]
    ends = [row for row in rows if row["status"] != BEGUN]
    assert [row["action"].removeprefix("precedent ") for row in ends] == [
        *("search", "recommend", "keys create", "keys revoke", "snapshot", "delete", "delete")
    ]
    search, recommend, create, revoke, snapshot, delete, nothing = ends
    assert search["images"] == [hit["id"] for hit in hits]
    assert (search["results"], search["status"], search["outcome"]) == (3, 0, "ok")
    assert (search["who"]["kind"], bool(search["who"]["name"])) == ("user", True)
    assert recommend["studies"][0] == "1.2.4.0"
    assert create["about"]["key"] == revoke["about"]["key"] == made["id"]
    assert snapshot["results"] == 35
    assert (delete["studies"], delete["results"]) == (["1.2.4.1"], 2)
    assert (nothing["status"], nothing["outcome"], nothing["studies"]) == (1, "failed", [])
    written = json.dumps(rows)
    assert made["key"][21:] not in written
    assert image.parent.name + "/" not in written


def test_a_command_that_cannot_be_recorded_does_nothing(site: Settings, indexed) -> None:
    run("keys", "create", "ward", *place(site))
    with Database(f"sqlite:///{site.data_dir / 'audit.sqlite'}", AUDIT) as database:
        with database.begin() as connection:
            connection.execute(text("ALTER TABLE audit RENAME TO elsewhere"))
        with pytest.raises(AuditError, match="no such table"):
            run("delete", "--study", "1.2.4.1", "--yes", *both(site))
        with database.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO audit"))
    assert lines("delete", "--study", "1.2.4.1", "--yes", *both(site))[0]["points"] == 2


def test_a_mistyped_folder_gets_no_log(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name in ("nowhere", "other"):
        assert exit_code("search", "x.png", "--data-dir", tmp_path / name) == 1
        with pytest.raises(AuditError, match="no audit log"):
            run("audit", "verify", "--data-dir", tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["other"]


def test_verify_names_the_row_that_was_changed(site: Settings, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run("keys", "create", name, *place(site))
    heads = tmp_path / "heads.json"
    run("audit", "export", tmp_path / "all.ndjson", "--heads", heads, *place(site))
    assert "the log is whole" in run("audit", "verify", "--heads", heads, *place(site))
    file = f"sqlite:///{site.data_dir / 'audit.sqlite'}"
    with Database(file, AUDIT) as database, database.begin() as connection:
        connection.execute(text("DELETE FROM audit WHERE seq > 1"))
    assert "the log is whole" in run("audit", "verify", *place(site))
    with Database(file, AUDIT) as database, database.begin() as connection:
        connection.execute(text("DELETE FROM audit WHERE seq > 1"))
    # The row of the check before was cut off with the rest.
    code, told = ended("audit", "verify", "--heads", heads, *place(site))
    assert code == 1
    assert f"chain {CHAIN}, row 6: it is missing" in told
    with Database(file, AUDIT) as database, database.begin() as connection:
        connection.execute(text("UPDATE audit SET body = replace(body, '\"a\"', '\"x\"')"))
        connection.execute(
            text("UPDATE audit SET body = replace(body, 'keys create', 'search') WHERE seq = 1")
        )
    code, told = ended("audit", "verify", "--json", *place(site))
    assert code == 1
    assert json.loads(told)["whole"] is False
    flaw = {"chain": CHAIN, "row": 1, "what": "it was changed"}
    assert flaw in json.loads(told)["flaws"]
    assert rows_of(site)[-1]["status"] == 1


def test_search_finds_who_saw_a_study(site: Settings) -> None:
    with LoopbackClient(create_service(site)) as client:
        hits = client.post("/v1/recommend", data={"study": "1.2.4.0"}).json()["hits"]
        image = hits[0]["id"]
        client.get(f"/v1/images/{image}/thumbnail")
        client.get("/v1/images/none")
    lines("keys", "create", "ward", *place(site))

    def found(*options: object) -> list[str]:
        return [row["action"] for row in lines("audit", "search", *options, *place(site))]

    thumbnail = "GET /v1/images/{id}/thumbnail"
    assert found("--study", "1.2.4.0") == ["POST /v1/recommend"]
    assert found("--image", image.upper()) == ["POST /v1/recommend", thumbnail]
    assert found("--route", "thumbnail") == [thumbnail]
    assert found("--outcome", "refused") == ["GET /v1/images/{id}"]
    assert found("--who", "nobody") == []
    assert found("--study", "%") == []
    (user,) = {row["who"]["name"] for row in rows_of(site) if row["who"]["kind"] == "user"}
    assert found("--who", user, "--route", "keys") == ["precedent keys create"] * 2
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert found("--since", tomorrow.isoformat()) == []
    assert found("--until", "2020-01-01") == []
    assert found("--tenant", "default", "--limit", "1") == ["GET /v1/images/{id}"]
    table = run("audit", "search", "--outcome", "refused", *place(site))
    assert "refused 404" in table
    for wrong in (("--outcome", "x"), ("--since", "yesterday")):
        with pytest.raises(QueryError, match=r"use one of|write it as"):
            run("audit", "search", *wrong, *place(site))
    # Whoever looks into the log leaves a row as well.
    assert rows_of(site)[-1]["action"] == "precedent audit search"


def test_export_writes_audit_events(site: Settings, tmp_path: Path) -> None:
    with LoopbackClient(create_service(site)) as client:
        like = {"study": "1.2.4.0", "where": "modality=CT"}
        hits = client.post("/v1/recommend", data=like).json()["hits"]
        client.get(f"/v1/images/{hits[0]['id']}")
        client.get("/v1/images/none")
        client.post("/login", data={"key": "x"})
    lines("keys", "create", "ward", *place(site))
    lines("delete", "--study", "1.2.4.1", "--yes", *both(site))
    file, heads = tmp_path / "all.ndjson", tmp_path / "heads.json"
    run("audit", "export", file, "--heads", heads, *place(site))
    events = [json.loads(line) for line in file.read_text().splitlines()]
    rows = rows_of(site)[:-1]
    assert len(events) == len(rows) == 9
    assert set(json.loads(heads.read_text())["heads"]) == {row["chain"] for row in rows}
    for event, row in zip(events, rows, strict=True):
        assert event["resourceType"] == "AuditEvent"
        AuditEvent.model_validate(event)
        assert event["recorded"] == row["at"]
        assert len(event["id"]) <= 64
        assert [agent["requestor"] for agent in event["agent"]] == [True, False]
        assert event["outcome"] in ("0", "4", "8")
    recommend, image, refused, login, _, key, begun, delete, export = events
    assert (begun["action"], begun["outcomeDesc"]) == ("D", "ok (102)")
    assert export["type"]["code"] == "110101"
    assert recommend["type"]["code"] == image["type"]["code"] == "rest"
    assert [recommend["subtype"][0]["code"], recommend["action"]] == ["search", "E"]
    assert [image["subtype"][0]["code"], image["action"]] == ["read", "R"]
    shown = [
        entity["what"]["identifier"]["value"]
        for entity in image["entity"]
        if entity.get("role", {}).get("code") == "4"
    ]
    assert f"urn:uuid:{hits[0]['id']}" in shown
    assert f"urn:oid:{hits[0]['study']}" in shown
    assert refused["outcome"] == "4"
    assert (login["type"]["code"], login["subtype"][0]["code"]) == ("110114", "110122")
    assert key["subtype"][0]["code"] == "110137"
    assert (delete["type"]["code"], delete["action"]) == ("110105", "D")
    assert delete["agent"][0]["network"]["type"] == "1"
    place_of = {one["type"]: one["valueString"] for one in export["entity"][-1]["detail"]}
    assert place_of["chain"] == CHAIN
    assert place_of["hash"] == json.loads(heads.read_text())["heads"][CHAIN]["hash"]
    later = run("audit", "export", "--since", "2999-01-01", *place(site))
    assert later == ""


def test_forget_removes_what_is_old_and_says_so(site: Settings, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("keys", "create", name, *place(site))
    heads = tmp_path / "heads.json"
    run("audit", "export", tmp_path / "all", "--heads", heads, *place(site))
    with pytest.raises(QueryError, match="has not passed"):
        run("audit", "forget", "--before", "2999-01-01", "--yes", *place(site))
    with pytest.raises(QueryError, match="write it as"):
        run("audit", "forget", "--before", "soon", "--yes", *place(site))
    run("audit", "forget", "--before", "1d", "--yes", *place(site))
    assert len(rows_of(site)) == 7
    run("audit", "forget", "--before", "0d", "--yes", *place(site))
    (left,) = rows_of(site)
    assert (left["action"], left["who"]["kind"]) == ("precedent audit forget", "user")
    told = run("audit", "verify", "--heads", heads, *place(site))
    assert "were forgotten" in told
    assert left["who"]["name"] in told
    # An aborted one forgets nothing.
    assert exit_code("audit", "forget", "--before", "0d", *place(site)) == 1
    assert len(rows_of(site)) == 2


def test_the_commands_of_the_page_on_security_do_what_it_says(
    site: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    said = [line.split()[1:] for line in page.splitlines() if line.startswith("precedent audit ")]
    assert [words[1] for words in said] == ["verify", "search", "export", "verify", "forget"]
    run("keys", "create", "ward", *place(site))
    for words in said:
        code, _ = ended(*(str(site.data_dir) if one == "/srv/precedent" else one for one in words))
        assert code in (None, 0), words
    assert (tmp_path / "accesses.ndjson").read_text()


def test_a_role_that_may_only_add_rows_is_enough(postgres: Postgres, indexed, tmp_path) -> None:
    url = postgres.create_database()
    ledger = LedgerSettings.model_validate({"url": url.replace("postgres@", "precedent@")})
    settings = indexed.copy(tmp_path / "data").model_copy(update={"ledger": ledger})
    for statement in ("CREATE ROLE precedent LOGIN", "CREATE ROLE auditor"):
        postgres.execute(statement)
    try:
        postgres.execute("GRANT ALL ON SCHEMA public TO precedent", url)
        with open_log(settings):
            pass
        page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
        statements = re.search(r"`(ALTER TABLE audit[^`]*)`", page)
        assert statements is not None
        postgres.execute(statements[1].replace("\n", " "), url)
        with LoopbackClient(create_service(settings)) as client:
            assert client.get("/v1/facets").status_code == 200
        with open_log(settings) as log:
            log.check()
            log.add_command(Entry(Who("user"), "precedent search", 0, "ok"))
            assert verify(log, log.heads()).rows == 2
            with pytest.raises(AuditError, match="permission denied"):
                log.forget(datetime.now(UTC), Entry(Who("user"), "forget", 0, "ok"))
            assert verify(log).forgotten == []
    finally:
        postgres.drop_database(url)
        for role in ("precedent", "auditor"):
            postgres.execute(f"DROP ROLE {role}")


def test_a_log_with_no_name_of_its_user_is_written(site: Settings, monkeypatch) -> None:
    def nameless() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    run("keys", "create", "a", *place(site))
    assert rows_of(site)[0]["who"]["name"] is None
    assert "user" in run("audit", "search", *place(site))

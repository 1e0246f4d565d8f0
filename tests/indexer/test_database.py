"""The ledger's database opens whatever there was before, and says what to do when it cannot."""

import importlib.util
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from services.postgres import Postgres
from sqlalchemy import Engine, create_engine, inspect, select, text, update

from engine.errors import LedgerError
from engine.settings import LedgerSettings, Settings
from indexer.ledger.database import Database, open_database
from indexer.ledger.instances import Done, Ledger
from indexer.ledger.migrations import HEAD
from indexer.ledger.schema import instances, jobs, metadata, tasks
from indexer.sources.base import Discovered

AT = "2024-05-01T12:00:00+00:00"
SECRET = "a-word-nobody-may-see"

RELEASED = """
CREATE TABLE instances (
	locator VARCHAR NOT NULL, 
	size BIGINT NOT NULL, 
	modified BIGINT NOT NULL, 
	label VARCHAR, 
	state VARCHAR NOT NULL, 
	reason VARCHAR, 
	detail VARCHAR, 
	content VARCHAR, 
	study VARCHAR, 
	series VARCHAR, 
	sop VARCHAR, 
	patient VARCHAR, 
	seen_in INTEGER NOT NULL, 
	finished_in INTEGER, 
	finished_at VARCHAR, 
	PRIMARY KEY (locator)
);
CREATE INDEX instances_by_study ON instances (study);
CREATE INDEX instances_by_run ON instances (seen_in, state, locator);
CREATE INDEX instances_by_patient ON instances (patient);
CREATE TABLE runs (
	run INTEGER NOT NULL, 
	PRIMARY KEY (run)
);
CREATE TABLE points (
	locator VARCHAR NOT NULL, 
	id VARCHAR NOT NULL, 
	frame INTEGER NOT NULL, 
	PRIMARY KEY (locator, id), 
	FOREIGN KEY(locator) REFERENCES instances (locator) ON DELETE CASCADE
);
CREATE INDEX points_by_id ON points (id);
"""  # noqa: W291
"""What the version that first kept a ledger made of an SQLite file."""

CONTENT = """
INSERT INTO runs VALUES (1), (2), (7);
INSERT INTO instances VALUES
    ('file:///a', 10, 1, 'ct', 'done', NULL, NULL, 'c0ffee', '1.2', '1.2.3', '1.2.3.4', 'k', 7, 2,
     '2024-05-01T12:00:00+00:00'),
    ('file:///b', 10, 1, NULL, 'refused', 'damaged', 'cut', NULL, NULL, NULL, NULL, NULL, 7, 1,
     '2024-05-01T12:00:00+00:00'),
    ('file:///c', 10, 1, NULL, 'pending', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 7, NULL, NULL);
INSERT INTO points VALUES ('file:///a', 'p1', 0);
"""


@contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def run_statements(url: str, statements: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        for statement in statements.split(";\n"):
            if statement.strip():
                connection.execute(text(statement))


def make_released(url: str) -> None:
    """An early ledger with something in it; PostgreSQL had one only since there are revisions."""
    if url.startswith("sqlite"):
        run_statements(url, RELEASED)
    else:
        upgrade(url, "0001")
    run_statements(url, CONTENT)


def upgrade(url: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "indexer.ledger:migrations")
    with engine_of(url) as engine, engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def tables_of(url: str) -> set[str]:
    with engine_of(url) as engine:
        return set(inspect(engine).get_table_names())


def revision_of(url: str) -> str:
    with engine_of(url) as engine, engine.begin() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()


def made_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {sql for (sql,) in rows if "alembic" not in sql}


def refusal(url: str) -> str:
    """What opening it says. No part of the error, its causes included, has the password."""
    with pytest.raises(LedgerError) as caught:
        Database(url)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return message


def test_a_new_database_has_the_tables_of_the_code(ledger_url: str) -> None:
    with Database(ledger_url) as database, database.begin() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
    assert tables_of(ledger_url) == {*metadata.tables, "alembic_version"}
    assert revision_of(ledger_url) == HEAD


def test_text_is_ordered_by_bytes_in_every_column(postgres: Postgres) -> None:
    url = postgres.create_database()
    with Database(url):
        pass
    collations = postgres.execute(
        "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = "
        "'public' AND data_type = 'character varying' AND table_name <> 'alembic_version'",
        url,
    )
    assert collations == [("C",)]


def test_the_newest_revision_is_the_one_that_opening_looks_for() -> None:
    config = Config()
    config.set_main_option("script_location", "indexer.ledger:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_the_first_revision_is_what_was_released(tmp_path: Path) -> None:
    released, first = tmp_path / "released.sqlite", tmp_path / "first.sqlite"
    run_statements(f"sqlite:///{released}", RELEASED)
    upgrade(f"sqlite:///{first}", "0001")
    assert made_of(first) == made_of(released)


def test_an_early_ledger_is_taken_over_with_all_it_knows(ledger_url: str) -> None:
    make_released(ledger_url)
    with Database(ledger_url) as database:
        ledger = Ledger(database.of("default"))
        assert ledger.counts() == {"done": 1, "refused": 1, "pending": 1}
        assert ledger.points_of(["file:///a"]) == {"file:///a": ["p1"]}
        assert ledger.find(study="1.2", patient="k") == ["file:///a"]
        assert ledger.run_counts(7) == (0, 1, {"damaged": 1})
        with database.begin() as connection:
            rows = connection.execute(
                select(jobs.c.id, jobs.c.kind, jobs.c.state, jobs.c.source).order_by(jobs.c.id)
            ).all()
        assert rows == [(number, "run", "finished", "") for number in (1, 2, 7)]
        # Numbers go on after those that instances name.
        run = ledger.begin_run("folder", AT)
        assert run == 8
        found = [Discovered("file:///a", 10, 1, "ct"), Discovered("file:///c", 10, 1)]
        ledger.discover(run, "folder", found)
        assert [pending.locator for pending in ledger.pending(run)] == ["file:///c"]
        assert ledger.find(source="folder") == ["file:///a", "file:///c"]
    assert "runs" not in tables_of(ledger_url)
    assert revision_of(ledger_url) == HEAD


def test_an_early_ledger_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    run_statements(f"sqlite:///{path}", RELEASED.partition("CREATE TABLE runs")[0])
    with Database(f"sqlite:///{path}") as database:
        assert Ledger(database.of("default")).begin_run("folder", AT) == 1


def test_the_number_of_a_removed_job_is_not_given_out_again(ledger_url: str) -> None:
    with Database(ledger_url) as database:
        ledger = Ledger(database.of("default"))
        last = [ledger.begin_run("folder", AT) for _ in range(3)][-1]
        with database.begin() as connection:
            connection.execute(tasks.insert().values(job=last, number=0, kind="k", state="s"))
            connection.execute(jobs.delete().where(jobs.c.id == last))
            assert connection.execute(select(tasks.c.job)).all() == []
        assert ledger.begin_run("folder", AT) > last


def test_a_step_that_fails_leaves_the_ledger_as_it_was(ledger_url: str) -> None:
    make_released(ledger_url)
    run_statements(ledger_url, "CREATE INDEX manifest_by_chunk ON instances (detail)")
    before = tables_of(ledger_url)
    assert "manifest_by_chunk" in refusal(ledger_url)
    assert tables_of(ledger_url) == before
    run_statements(ledger_url, "DROP INDEX manifest_by_chunk")
    with Database(ledger_url) as database:
        assert Ledger(database.of("default")).counts() == {"done": 1, "refused": 1, "pending": 1}


def test_a_ledger_of_a_later_version_is_left_alone(ledger_url: str) -> None:
    with Database(ledger_url):
        pass
    run_statements(ledger_url, "UPDATE alembic_version SET version_num = '0999'")
    message = refusal(ledger_url)
    assert "later version" in message
    assert "0999" in message
    assert "install" in message
    assert revision_of(ledger_url) == "0999"


@pytest.mark.parametrize("name", ["instances", "jobs"])
def test_tables_of_something_else_are_left_alone(ledger_url: str, name: str) -> None:
    run_statements(ledger_url, f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, host VARCHAR)")
    message = refusal(ledger_url)
    assert name in message
    assert "empty database" in message
    assert tables_of(ledger_url) == {name}


OPENING = """
import sys
from indexer.ledger.database import Database
from indexer.ledger.instances import Ledger
print("ready", flush=True)
sys.stdin.readline()
with Database(sys.argv[1]) as database:
    ledger = Ledger(database.of("default"))
    print(ledger.begin_run("folder", ""), *sorted(ledger.counts().items()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True], ids=["new", "early"])
def test_processes_that_open_it_at_once_migrate_once(ledger_url: str, early: bool) -> None:
    if early:
        make_released(ledger_url)
    opening = [
        subprocess.Popen(
            [sys.executable, "-c", OPENING, ledger_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in opening:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in opening:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in opening]
    assert [error for _, error in answers] == [""] * 4
    first = 8 if early else 1
    runs = sorted(int(out.split()[0]) for out, _ in answers)
    assert runs == list(range(first, first + 4))
    seen = {out.partition(" ")[2].strip() for out, _ in answers}
    assert seen == {"('done', 1) ('pending', 1) ('refused', 1)" if early else ""}


def test_threads_of_one_process_may_migrate_at_once(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / str(number)}" for number in range(6)]
    errors: list[BaseException] = []

    def opened(url: str) -> None:
        try:
            Database(url).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=opened, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {revision_of(url) for url in urls} == {HEAD}


def test_opening_a_ledger_that_is_up_to_date_loads_no_migrations(ledger_url: str) -> None:
    with Database(ledger_url):
        pass
    script = "import sys; from indexer.ledger.database import Database; "
    script += "Database(sys.argv[1]).close(); print('alembic' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", script, ledger_url], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"


def test_migrations_come_with_the_package() -> None:
    """A wheel has what lies in a package's folder: nothing is looked for elsewhere."""
    spec = importlib.util.find_spec("indexer.ledger.migrations")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    assert (folder / "env.py").is_file()
    numbers = sorted(path.name[:4] for path in (folder / "versions").glob("0*.py"))
    assert numbers == ["0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009"]


def test_settings_name_the_database(tmp_path: Path, ledger_url: str) -> None:
    named = Settings(ledger=LedgerSettings(url=ledger_url))
    with open_database(named, tmp_path / "unused" / "file.sqlite") as database:
        assert database.dialect == ledger_url.partition(":")[0].partition("+")[0]
    assert not (tmp_path / "unused").exists()
    assert revision_of(ledger_url) == HEAD


def test_without_settings_it_is_a_file_of_that_very_name(tmp_path: Path) -> None:
    path = tmp_path / "a folder %41?x=1#ü" / "ledger.sqlite"
    with open_database(Settings(), path) as database:
        assert database.dialect == "sqlite"
    assert path.read_bytes().startswith(b"SQLite format 3")
    # And opening makes no other files that stay.
    assert [one.name for one in path.parent.iterdir()] == ["ledger.sqlite"]


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match=r"--data-dir"):
        open_database(Settings(), tmp_path / "file" / "ledger.sqlite")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"mysql://me:{SECRET}@db.example/x", "'mysql'"),
        (f"postgresql+asyncpg://me:{SECRET}@db.example/x", "'postgresql+asyncpg'"),
        ("sqlite+aiosqlite:////x", "'sqlite+aiosqlite'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        (f"me:{SECRET}@db.example/x", "cannot be read"),
        (f"postgresql://me:pass@{SECRET}@db.example/x", "%40"),
        (f"postgresql://me:pass@{SECRET}/more@db.example/x", "%40"),
        (f"postgresql://me@db.example:{SECRET}/x", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_an_url_that_cannot_be_used_is_told_without_its_secrets(url: str, said: str) -> None:
    message = refusal(url)
    assert said in message
    assert "PRECEDENT_LEDGER__URL" in message


def test_without_psycopg_the_way_out_is_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = refusal(f"postgresql://me:{SECRET}@localhost/x")
    assert "pip install 'precedent-imaging[server]'" in message


def test_both_ways_to_write_postgresql_are_the_same(postgres: Postgres) -> None:
    url = postgres.create_database()
    for written in (url.replace("+psycopg", ""), url.replace("postgresql+psycopg", "postgres")):
        with Database(written) as database:
            assert database.dialect == "postgresql"


@pytest.fixture(scope="module")
def guarded(postgres: Postgres) -> str:
    """A role that needs a password, which is "right"."""
    postgres.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    return "guarded"


def test_a_wrong_password_is_told_without_it(postgres: Postgres, guarded: str) -> None:
    message = refusal(postgres.url("postgres", guarded, SECRET))
    assert "password" in message
    assert "PRECEDENT_LEDGER__URL" in message


def test_a_user_who_may_not_make_tables_is_told_so(postgres: Postgres, guarded: str) -> None:
    name = postgres.create_database().rpartition("/")[2]
    assert "owner" in refusal(postgres.url(name, guarded, "right"))
    postgres.execute(f"ALTER DATABASE {name} OWNER TO {guarded}")
    with Database(postgres.url(name, guarded, "right")) as database:
        assert Ledger(database.of("default")).counts() == {}


def test_a_database_that_is_not_there_is_named(postgres: Postgres) -> None:
    message = refusal(postgres.url("nothing_of_this_name"))
    assert "nothing_of_this_name" in message
    assert "PRECEDENT_LEDGER__URL" in message


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_a_server_that_cannot_be_reached_is_named(host: str) -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        message = refusal(f"postgresql://me:{SECRET}@{host}:{port}/x")
    assert f"{host}:{port}" in message
    assert "check that the server runs" in message
    assert "PRECEDENT_LEDGER__URL" in message


def test_a_database_that_cannot_hold_every_label_is_refused(postgres: Postgres) -> None:
    url = postgres.create_database(encoding="LATIN1")
    message = refusal(url)
    assert "LATIN1" in message
    assert "ENCODING 'UTF8'" in message
    assert tables_of(url) == set()


@pytest.mark.parametrize(
    "content",
    [b"this is no database, but it is longer than a header of one " * 40, b"SQLite format 3\0junk"],
    ids=["text", "cut"],
)
def test_a_damaged_file_is_one_line_with_a_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    message = refusal(f"sqlite:///{path}")
    assert str(path) in message
    assert "check the disk" in message
    # It was not "repaired" by making a new one over it.
    assert path.read_bytes() == content


def test_an_error_inside_a_transaction_undoes_it(ledger_url: str) -> None:
    with Database(ledger_url) as database:
        row = {"kind": "run", "source": "s", "state": "running"}
        with pytest.raises(ValueError, match="of the caller"), database.begin() as connection:
            connection.execute(jobs.insert().values(row))
            raise ValueError("of the caller")
        with pytest.raises(LedgerError) as caught, database.begin() as connection:
            connection.execute(jobs.insert().values(row))
            connection.execute(text("SELECT * FROM no_such_table"))
        assert "no_such_table" in str(caught.value)
        assert "\n" not in str(caught.value)
        with database.begin(read=True) as connection:
            assert connection.execute(select(jobs)).all() == []


def test_errors_do_not_quote_rows(ledger_url: str) -> None:
    with Database(ledger_url) as database:
        row = {"tenant": "default", "locator": f"file:///{SECRET}", "size": 1, "modified": 1}
        row["state"] = "pending"
        for fault in ({"seen_in": None}, {"seen_in": 1}):
            with pytest.raises(LedgerError) as caught, database.begin() as connection:
                connection.execute(instances.insert(), [{**row, **fault}, {**row, **fault}])
            assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_insert_can_say_what_to_do_on_a_conflict(ledger_url: str) -> None:
    row = {"id": 5, "kind": "run", "source": "s", "state": "running"}
    with Database(ledger_url) as database, database.begin() as connection:
        statement = database.insert(jobs)
        connection.execute(statement, [row])
        connection.execute(statement.on_conflict_do_nothing(), [{**row, "state": "other"}])
        assert connection.execute(select(jobs.c.state)).scalars().all() == ["running"]
        replaced = statement.on_conflict_do_update(
            index_elements=[jobs.c.id], set_={"state": statement.excluded.state}
        )
        connection.execute(replaced, [{**row, "state": "other"}])
        assert connection.execute(select(jobs.c.state)).scalars().all() == ["other"]


def test_what_a_row_does_not_say_has_its_default(ledger_url: str) -> None:
    with Database(ledger_url) as database, database.begin() as connection:
        connection.execute(jobs.insert().values(id=1, kind="k", source="s", state="s"))
        connection.execute(tasks.insert().values(job=1, number=0, kind="k", state="s"))
        job = connection.execute(select(jobs)).one()
        assert (job.spec, job.options, job.priority, job.note) == ("{}", "{}", 0, None)
        task = connection.execute(select(tasks)).one()
        assert (task.attempts, task.not_before, task.total, task.points) == (0, 0.0, 0, 0)
        assert (task.refused, task.seconds, task.worker) == ("{}", 0.0, None)


INCREASING = """
import sys
from sqlalchemy import select, update
from indexer.ledger.database import Database
from indexer.ledger.schema import jobs
with Database(sys.argv[1]) as database:
    for _ in range(100):
        with database.begin() as connection:
            number = connection.execute(select(jobs.c.priority)).scalar_one()
            connection.execute(update(jobs).values(priority=number + 1))
"""


@pytest.mark.slow
def test_sqlite_transactions_that_read_before_they_write_do_not_collide(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    with Database(url) as database:
        run = Ledger(database.of("default")).begin_run("folder", AT)
        writing = [
            subprocess.Popen([sys.executable, "-c", INCREASING, url], stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        assert [process.communicate(timeout=100)[1] for process in writing] == [b""] * 3
        with database.begin(read=True) as connection:
            query = select(jobs.c.priority).where(jobs.c.id == run)
            assert connection.execute(query).scalar_one() == 300


def test_reading_does_not_wait_for_a_writer(ledger_url: str) -> None:
    with Database(ledger_url) as database:
        ledger = Ledger(database.of("default"))
        run = ledger.begin_run("folder", AT)
        with database.begin() as connection:
            connection.execute(update(jobs).values(state="changed"))
            started = time.monotonic()
            with database.begin(read=True) as other:
                query = select(jobs.c.state).where(jobs.c.id == run)
                assert other.execute(query).scalar_one() == "running"
            assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_restart_of_the_server_is_survived_by_the_next_call() -> None:
    with Postgres() as server:
        url = server.create_database()
        with Database(url) as database:
            ledger = Ledger(database.of("default"))
            run = ledger.begin_run("folder", AT)
            ledger.discover(run, "folder", [Discovered("file:///a", 1, 1)])
            server.stop()
            with pytest.raises(LedgerError, match="check that the server runs"):
                ledger.counts()
            server.start()
            assert ledger.counts() == {"pending": 1}
            # Cut while nobody looked.
            server.stop()
            server.start()
            ledger.finish(run, [Done("file:///a", "c0ffee", (("p1", 0),))], AT)
            # Cut in the middle of a transaction, none of which stays.
            with pytest.raises(LedgerError), database.begin() as connection:
                connection.execute(instances.delete())
                server.kill()
                connection.execute(select(jobs)).all()
            server.start()
            assert ledger.counts() == {"done": 1}
            assert ledger.points_of(["file:///a"]) == {"file:///a": ["p1"]}


def test_a_read_only_place_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.mkdir()
    message = refusal(f"sqlite:///{path}")
    assert "check the disk and its permissions" in message
    assert os.listdir(path) == []  # noqa: PTH208

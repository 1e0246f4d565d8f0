"""A tenant's share of the ledger: no statement without the tenant is executed."""

import pytest
from sqlalchemy import delete, func, insert, select, text, update

from indexer.ledger.database import Database
from indexer.ledger.instances import Done, Ledger, Refused
from indexer.ledger.schema import deleted, instances, jobs, points, stale, tasks
from indexer.ledger.tenancy import all_tenants, refuse_untenanted
from indexer.sources.base import Discovered

AT = "2024-05-01T12:00:00+00:00"


@pytest.fixture
def database(made_ledger_url: str):
    with Database(made_ledger_url) as opened:
        yield opened


OTHER = instances.alias()
LEFT_OUT = {
    "select": select(instances.c.locator),
    "count": select(func.count()).select_from(points),
    "of one of two": select(points.c.id).join(instances).where(instances.c.tenant == "north"),
    "of one of two with a comma": select(points.c.id).where(
        instances.c.tenant == "north", points.c.locator == instances.c.locator
    ),
    "of an alias": select(instances.c.locator).where(
        instances.c.tenant == "north",
        select(OTHER.c.locator).where(OTHER.c.sop == instances.c.sop).exists(),
    ),
    "update": update(jobs).where(jobs.c.id == 1).values(state="x"),
    "update of the tenant": update(jobs).where(jobs.c.id == 1).values(tenant="north"),
    "delete": delete(stale).where(stale.c.id == "p"),
    "insert": insert(stale).values(id="p"),
    "of a job": select(tasks.c.number).join(jobs),
    "of another tenant": select(instances.c.locator).where(instances.c.tenant == "south"),
    "into another tenant": insert(deleted).values(tenant="south", locator_sha256="00"),
    "as text": text("SELECT locator FROM instances"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_statement_that_leaves_out_the_tenant_is_refused(database: Database, what: str) -> None:
    with pytest.raises(ValueError, match="tenant"), database.of("north").begin() as connection:
        connection.execute(LEFT_OUT[what])


def test_a_statement_with_the_tenant_is_executed(database: Database) -> None:
    north = database.of("north")
    with north.begin() as connection:
        connection.execute(insert(stale).values(tenant="north", id="p"))
        joined = select(points.c.id).join(instances).where(north.own(points, instances))
        assert connection.execute(joined).all() == []
        assert connection.execute(select(stale.c.id).where(north.own(stale))).all() == [("p",)]
        # Tables of jobs alone belong to whoever has the job.
        assert connection.execute(select(tasks.c.points)).all() == []
    with database.of("south").begin() as connection:
        own = database.of("south").own(stale)
        assert connection.execute(select(stale.c.id).where(own)).all() == []


def test_a_parameter_of_another_tenant_is_refused() -> None:
    statement = "SELECT locator FROM instances WHERE instances.tenant = ?"
    refuse_untenanted(statement, {"tenant_1": "north"}, "north")
    with pytest.raises(ValueError, match="another tenant"):
        refuse_untenanted(statement, {"tenant_1": "south"}, "north")


def seen(ledger: Ledger, *locators: str) -> int:
    run = ledger.begin_run("folder", AT)
    ledger.discover(run, "folder", [Discovered(one, 1, 1) for one in locators])
    return run


def test_one_file_is_an_instance_of_each_tenant(database: Database) -> None:
    north, south = (Ledger(database.of(one)) for one in ("north", "south"))
    assert all_tenants(database) == ["default"]
    run = seen(north, "file:///a", "file:///b")
    north.finish(run, [Done("file:///a", "aa", (("n1", 0),), sop="1.2")], AT)
    assert south.counts() == {}
    assert all_tenants(database) == ["north"]
    other = seen(south, "file:///a")
    south.finish(other, [Refused("file:///a", "damaged", "cut")], AT)  # type: ignore[arg-type]
    assert all_tenants(database) == ["north", "south"]
    assert north.counts() == {"done": 1, "pending": 1}
    assert south.counts() == {"refused": 1}
    assert north.owners(["n1"]).keys() == {"n1"}
    assert south.owners(["n1"]) == {}
    assert north.points_of(["file:///a"]) == {"file:///a": ["n1"]}
    assert south.points_of(["file:///a"]) == {}
    assert list(south.vanished(other + 1, "folder", [])) == [["file:///a"]]
    south.forget(["file:///a", "file:///b"])
    south.clear()
    assert north.counts() == {"done": 1, "pending": 1}
    north.clear()
    assert north.counts() == {}

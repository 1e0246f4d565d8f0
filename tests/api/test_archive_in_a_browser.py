"""The pages of the archive, its duplicates and the model in a real browser, also by keys alone."""

import json
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from services.needed import package
from services.node import installed
from services.running import served
from test_archive_page import refuse
from test_model_page import asked as questions

from api.service import create_service
from engine.errors import RefusalReason
from engine.settings import Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.ledger.database import Database
from indexer.ledger.instances import Refused

FOLDER = Path(__file__).parents[1] / "services" / "portal"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everybody_can_use_the_pages_of_the_whole(calibrated: Settings, tmp_path: Path) -> None:
    browser, node = package("chromium"), installed(FOLDER)
    with Archive(calibrated) as archive:
        points = list(archive.store.scroll(Filter(), with_z=True))
        names = [str(uuid.UUID(int=number)) for number in range(3)]
        archive.store.upsert([replace(points[0], id=name) for name in names])
    with Database(f"sqlite:///{calibrated.data_dir / 'ledger.sqlite'}") as database:
        refused = Refused("file:///none", RefusalReason.TRUNCATED, "it ends early", "1.2.3")
        refuse(database, "default", [refused])
    questions(calibrated, ["foreign"] * 20 + ["known"] * 60)
    with served(create_service(calibrated)) as address:
        wanted = {"browser": str(browser), "base": address, "pictures": str(tmp_path)}
        done = subprocess.run(
            [node, "overview.js", json.dumps(wanted)],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=580,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == []
    assert found["strangers"] == []
    assert found["complaints"] == []
    assert len(found["looks"]) == 2 * 2 * 3
    assert min(one["passes"] for one in found["looks"]) > 5
    assert {one["name"] for one in found["looks"] if one["wide"] > 0} == set()
    assert found["plain"]["cases"] == 6
    assert found["plain"]["alike"] > 0
    assert found["plain"]["listed"] > 0

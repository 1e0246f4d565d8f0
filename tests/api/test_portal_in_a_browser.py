"""The pages in a real browser: WCAG at both widths and themes, by keys, and without JavaScript."""

import json
import subprocess
from pathlib import Path

import pytest
from commands import run
from conftest import HOSTILE_LABEL
from pydantic import SecretStr
from services.needed import package
from services.node import installed
from services.running import served

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import JobSettings
from indexer.ledger.database import Database

FOLDER = Path(__file__).parents[1] / "services" / "portal"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everybody_can_use_the_pages(indexed, tmp_path: Path) -> None:
    browser, node = package("chromium"), installed(FOLDER)
    (tmp_path / "image.dcm").write_bytes(indexed.files["ct"][0].read_bytes())
    several = [tmp_path / "image.dcm", tmp_path / "other.png", tmp_path / "letter.txt"]
    several[1].write_bytes(indexed.files["rings"][0].read_bytes())
    several[2].write_text("Dear colleague")
    settings = indexed.copy(tmp_path / "data")
    # Workers of their own would do the job, which so stays as it is.
    elsewhere = JobSettings(broker=SecretStr("redis://127.0.0.1:9"))
    settings = settings.model_copy(update={"jobs": elsewhere})
    run("jobs", "submit", indexed.files["rings"][0].parent, "--data-dir", settings.data_dir)
    with served(create_service(settings)) as address:
        asked = {
            "browser": str(browser),
            "base": address,
            "file": str(tmp_path / "image.dcm"),
            "several": [str(one) for one in several],
            "hostile": HOSTILE_LABEL,
            "pictures": str(tmp_path),
        }
        done = subprocess.run(
            [node, "look.js", json.dumps(asked)],
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
    assert len(found["looks"]) == 2 * 8 + 2 + 1 + 2 * 4 + 1
    assert min(one["passes"] for one in found["looks"]) > 5
    assert {one["name"] for one in found["looks"] if one["wide"] > 0} == set()
    # The answer comes first, on narrow screens too.
    hits = {one["name"]: one for one in found["looks"] if one["name"].startswith("hits")}
    assert all(one["stops"] <= 12 for one in hits.values()), hits
    assert hits["hits-390-light"]["top"] < 844, hits
    moves = found["keys"].pop("moves")
    assert moves[:2] == [0, 1]
    assert moves[2] > 2
    assert moves[3:] == [moves[2] - 1, 0]
    dragged = found["keys"].pop("dragged")
    assert dragged == ["?window=464&level=88", "?size=1024&window=464&level=88", "464"]
    opened = found["keys"].pop("opened")
    assert opened.startswith("/images/")
    assert found["keys"] == {"help": True, "filters": True, "off": True, "followed": True}
    refined = found["refined"]
    recent = refined.pop("recent")
    # A label with markup is shown as it is written.
    assert HOSTILE_LABEL in recent[-1]
    assert len(recent) >= 3
    assert refined.pop("small") == len(recent)
    assert "letter.txt" in refined.pop("unusable")[0]
    assert refined == {
        "typed": True,
        "checked": True,
        "focus": 1,
        "chips": 3,
        "undone": 2,
        "tiles": 1,
        "elsewhere": 0,
        "pictures": 2,
        "dropped": 2,
        "forgotten": 0,
    }
    plain = found["plain"]
    assert (plain["examples"], plain["collected"]) == (3, 3)
    assert all(shown for name, shown in plain.items() if name.startswith("kept"))
    assert plain["hits"] > plain["narrowed"] > 0
    assert plain["image"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_administrators_can_use_their_pages(indexed, tmp_path: Path) -> None:
    browser, node = package("chromium"), installed(FOLDER)
    settings = indexed.copy(tmp_path / "data")
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        _, key = Keys(database).create("every", list(Scope))
    with served(create_service(settings)) as address:
        asked = {"browser": str(browser), "base": address, "key": key, "pictures": str(tmp_path)}
        done = subprocess.run(
            [node, "administer.js", json.dumps(asked)],
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
    assert len(found["looks"]) == 2 * 5
    assert {one["name"] for one in found["looks"] if one["wide"] > 0} == set()
    assert len({*found["shown"]}) == 3
    assert found["copied"] == found["shown"][:2]
    assert found["again"] == 0
    assert all("revoked" in one for one in found["states"])
    assert found["verified"] == ["The log is whole"] * 3
    assert min(found["rows"]) > 2

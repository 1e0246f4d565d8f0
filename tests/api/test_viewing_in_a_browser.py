"""Large pictures in a real browser: compared in one place, turned, and searched for by a region."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from services.needed import package
from services.node import installed
from services.running import served

from api.service import create_service

FOLDER = Path(__file__).parents[1] / "services" / "portal"


def walked(script: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What a walk through the pages met."""
    browser, node = package("chromium"), installed(FOLDER)
    done = subprocess.run(
        [node, script, json.dumps({"browser": str(browser), **asked})],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["violations"] == []
    assert found["strangers"] == []
    assert found["complaints"] == []
    assert {one["name"] for one in found["looks"] if one["wide"] > 0} == set()
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pictures_are_compared_in_one_place_turned_and_drawn_on(
    indexed, id_of, tmp_path: Path
) -> None:
    left, right = (id_of(path) for path in indexed.files["ct"][:2])
    settings = indexed.copy(tmp_path / "data")
    upload = tmp_path / "rings.png"
    upload.write_bytes(indexed.files["rings"][0].read_bytes())
    with served(create_service(settings)) as address:
        asked = {
            "base": address,
            "pair": f"/compare?left={left}&right={right}",
            "image": f"/images/{left}",
            "file": str(upload),
            "pictures": str(tmp_path),
        }
        found = walked("view.js", asked)
    compared = found["compared"]
    assert compared["first"] == "0,1"
    # A flash is two changes, and WCAG 2.3.1 allows three flashes a second.
    assert 1 < compared["blinks"] <= 3 * 3 * 2
    assert compared["stopped"] == compared["byKey"] == 0
    assert compared["exchanged"] in ("01", "10")
    assert compared["said"] == "Shown: CT CHEST"
    assert compared["again"]
    assert compared["half"] == "inset(0px 0px 0px 50%)"
    assert compared["moved"] == "inset(0px 0px 0px 53%)"
    assert compared["dragged"] == ["inset(0px 0px 0px 20%)", True]
    assert compared["windowed"] == ["inset(0px 0px 0px 20%)", True]
    assert compared["last"] == ["0,1", 0]
    calm = found["calm"]
    assert calm.pop("exchanged") in ("01", "10")
    assert calm == {"changes": 0, "told": True, "run": False, "after": 0}
    turned = found["turned"]
    assert turned["stored"] == "none"
    assert turned["right"] == "matrix(0, 1, -1, 0, 0, 0)"
    # What was turned to the right and then mirrored lies to the left.
    assert turned["mirrored"] == ["matrix(0, 1, 1, 0, 0, 0)", "?turn=270&mirror=true"]
    assert turned["said"] == (
        "Shown turned by a quarter to the left. Shown mirrored: left is right. "
        "Searches use the picture as stored."
    )
    assert turned["again"] == turned["mirrored"][0]
    assert turned["windowed"] == "?window=300&level=30&turn=90"
    assert turned["back"] == ["none", "?window=300&level=30"]
    for one in found["region"].values():
        assert one.pop("hits") > 0
        drawn = [0.4, 0.2, 0.5, 0.6]
        assert one == {
            "drawn": drawn,
            "first": drawn,
            "typed": [0.3, *drawn[1:]],
            "laid": True,
            "whole": True,
        }
    assert found["saved"] == {
        "none": False,
        "listed": ["Chests <b>of late</b>", "Others"],
        "applied": ["modality=CT", "study_year=2010..2020"],
        "like": True,
        "left": ["Others"],
        "others": [],
        "last": False,
    }
    assert found["plain"] == {
        "saved": False,
        "views": False,
        "seen": 2,
        "turned": 1,
        "region": ["0.25,0.25,0.6,0.5", True],
    }

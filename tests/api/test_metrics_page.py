"""The page on metrics has every figure that a service answers, with its type and labels."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from services.loopback import LoopbackClient

from api.http.figures import FIGURES
from api.service import create_service

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\|", re.MULTILINE)


def test_every_figure_of_a_service_is_on_the_page_as_it_is(indexed, tmp_path: Path) -> None:
    rows = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in ROW.findall(PAGE)
    }
    settings = indexed.copy(tmp_path / "data")
    app = create_service(settings)
    with LoopbackClient(app) as client:
        assert client.get("/v1/images/nothing").status_code == 404
        content = indexed.files["ct"][0].read_bytes()
        assert client.post("/v1/search", files={"file": content}).status_code == 200
        text = app.state.metrics.text().decode()
    seen = set()
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        if name not in rows:
            # An information is a gauge in this format, and its name has its ending.
            name = family.name
        kind, labels = rows[name]
        seen.add(name)
        assert family.type == kind or (family.type, kind) == ("gauge", "info"), name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} <= labels, name
    # All but those of what this service does not have: a calibration, an inbox that waits.
    missing = {one.shown for one in FIGURES.values()} - seen
    assert missing <= {
        "precedent_calibration_alpha",
        "precedent_calibration_timestamp_seconds",
    }

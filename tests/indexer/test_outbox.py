"""Sendings are kept over a restart; what another version noted is left alone, and said so."""

import json
from datetime import datetime

from engine.settings import Settings
from indexer.documents.outbox import Outbox
from indexer.documents.plans import Listed, Plan


def test_what_another_version_noted_is_left_alone(tmp_path, caplog) -> None:
    destinations = {"pacs": {"kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}}
    settings = Settings(data_dir=tmp_path, destinations=destinations)
    image = "00000000-0000-0000-0000-000000000001"
    plan = Plan.new("teaching", image, [Listed(image, 1.0, 0)], datetime(2026, 3, 1))
    kept, other, broken = (Outbox(settings).add("pacs", [plan], "default", {}) for _ in range(3))
    # A restart.
    outbox = Outbox(settings)
    assert {one.id for one in outbox.all("default")} == {kept.id, other.id, broken.id}
    path = tmp_path / "outbox" / f"{other.id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "new": "field"}))
    (tmp_path / "outbox" / f"{broken.id}.json").write_text("{")
    assert outbox.all("default") == [kept]
    # Whoever looks every few seconds is told once.
    assert outbox.due() == []
    assert outbox.all("default") == [kept]
    assert caplog.text.count("another version noted it") == 2
    assert path.is_file()

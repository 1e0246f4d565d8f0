"""What cannot be written or reached is told before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import run

from engine.errors import LedgerError, QueryError
from indexer import archive, encoders


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any) -> Any:
        pytest.fail("the model was loaded first")

    for module in (archive, encoders):
        monkeypatch.setattr(module, "load_encoder", loaded)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("train", "{images}", "--out"), "--out"),
        (("calibrate", "{images}", "--out"), "--out"),
        (("evaluate", "--queries", "{images}", "--database", "{images}", "--out"), "--out"),
        (("snapshot",), "FILE"),
        (("jobs", "report", "1", "--output"), "--output"),
        (("sample",), "DIRECTORY"),
    ],
)
def test_a_place_that_cannot_be_written(indexed, tmp_path: Path, command, option, monkeypatch):
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(indexed.settings.data_dir))
    images = str(indexed.files["stripes"][0].parent)
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / "out"
    said = f"{option} is '{target}', which cannot be written: .* is no folder; name another"
    with pytest.raises(QueryError, match=said):
        run(*(part.format(images=images) for part in command), target)


@pytest.mark.parametrize("command", [("search", "{image}"), ("index", "{image}"), ("receive",)])
def test_a_ledger_that_does_not_answer(indexed, command, monkeypatch):
    url = "postgresql://me:secret@127.0.0.1:1/ledger"
    monkeypatch.setenv("PRECEDENT_LEDGER__URL", url)
    monkeypatch.setenv("PRECEDENT_RECEIVE__ALLOWED_AE_TITLES", '["PACS"]')
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(indexed.settings.data_dir))
    image = str(indexed.files["stripes"][0])
    with pytest.raises(LedgerError, match="user and password in PRECEDENT_LEDGER__URL") as told:
        run(*(part.format(image=image) for part in command))
    assert "secret" not in str(told.value)

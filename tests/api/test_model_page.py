"""The page of the model, and the routes of its calibration and of drift."""

import re
from typing import Any

from fastapi.testclient import TestClient
from services.loopback import LoopbackClient
from test_api_page import Page

from api.audit.log import open_log
from api.audit.rows import Entry, Who
from api.portal.model import trained
from api.security.seen import Seen
from api.service import create_service
from engine.model.manifest import SHIPPED, read_manifest
from engine.settings import AuditSettings, Settings


def opened(client: TestClient, address: str = "/model") -> str:
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", Page(answer.text).text)


def asked(settings: Settings, verdicts: list[str], tenant: str = "default") -> None:
    """Rows of questions that got these verdicts, in the audit log."""
    who = Who("key", "0123456789abcdef", "ward", tenant)
    with open_log(settings) as log:
        entries = [Entry(who, "POST /v1/search", 200, "ok", Seen(verdict=v)) for v in verdicts]
        log.add(log.following("b" * 16, log.head("b" * 16), entries))


def test_a_model_without_calibration_says_so(client, archive) -> None:
    text = opened(client)
    assert archive.manifest.fingerprint in text
    assert "Its manifest does not say." in text
    assert "The model has no calibration" in text
    assert "Nothing is judged." in text
    assert client.get("/v1/model/calibration").json() == {
        "calibrated": False,
        "alpha": None,
        "level": None,
        "images": 0,
        "detectors": [],
        "curve": [],
    }
    for meaning in ("A kind of image that the model knows.", "Outside what the model knows."):
        assert meaning in text


def test_what_a_model_was_trained_on_is_told() -> None:
    told = dict(trained(read_manifest(SHIPPED)))
    assert re.fullmatch(r"[\d,]{4,}", told["Images"])
    assert int(told["Epochs"]) > 0
    assert "Run" not in told


def test_the_calibration_is_shown_as_it_is(calibrated: Settings) -> None:
    with LoopbackClient(create_service(calibrated)) as client:
        text = opened(client)
        told = client.get("/v1/model/calibration").json()
    assert (told["alpha"], told["images"], told["detectors"]) == (0.03, 400, ["knn"])
    assert [one["expected"] for one in told["curve"]][2] == 0.03
    for one in told["curve"]:
        assert one["judged"] == 400
        assert one["low"] <= one["expected"] <= one["high"]
        assert f"{one['foreign']} of 400" in text
    assert "calibrated on 400 known images" in text
    assert "3.0 % (α)" in text


def test_drift_is_told_of_the_callers_tenant_alone(calibrated: Settings) -> None:
    asked(calibrated, ["foreign"] * 12 + ["known"] * 48)
    asked(calibrated, ["foreign"] * 500, tenant="north")
    with LoopbackClient(create_service(calibrated)) as client:
        text = opened(client)
        told: dict[str, Any] = client.get("/v1/model/drift").json()
        few = client.get("/v1/model/drift", params={"latest": 40, "days": 1}).json()
        refused = client.get("/v1/model/drift", params={"days": 1000})
    (day,) = told["days"]
    assert (day["judged"], day["foreign"], day["unfamiliar"], day["share"]) == (60, 12, 0, 0.2)
    assert told["latest"] == {name: day[name] for name in told["latest"]}
    assert (few["latest"]["judged"], few["latest"]["foreign"]) == (40, 0)
    assert day["low"] > told["alpha"] == 0.03
    assert "More questions are foreign than there should be." in text
    assert "12 of the last 60 were foreign" in text
    assert "precedent calibrate FOLDER --out MODEL" in text
    assert (refused.status_code, refused.json()["code"]) == (400, "query")


def test_a_question_that_was_just_asked_counts(foreign_client, indexed) -> None:
    """All images are foreign to this model."""
    content = indexed.files["ct"][0].read_bytes()
    assert foreign_client.post("/v1/search", files={"file": content}).status_code == 200
    told = foreign_client.get("/v1/model/drift").json()
    assert (told["latest"]["judged"], told["latest"]["foreign"]) == (1, 1)
    assert "Too few questions to tell." in opened(foreign_client)


def test_without_an_audit_log_drift_is_not_known(calibrated: Settings) -> None:
    settings = calibrated.model_copy(update={"audit": AuditSettings(enabled=False)})
    with LoopbackClient(create_service(settings)) as client:
        assert client.get("/v1/model/drift").json() == {
            "recorded": False,
            "alpha": 0.03,
            "level": None,
            "days": [],
            "latest": None,
            "since": None,
        }
        assert "audit.enabled" in opened(client)

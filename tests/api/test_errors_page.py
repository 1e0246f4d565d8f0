"""The page on errors shows what the service answers."""

import json
from pathlib import Path

from services.loopback import LoopbackClient

from api.service import create_service

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()


def test_the_example_of_the_page_is_what_is_answered(archive) -> None:
    shown = json.loads(PAGE.partition("```json\n")[2].partition("```")[0])
    with LoopbackClient(create_service(archive=archive)) as client:
        answer = client.get(shown["instance"])
    told = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == shown["status"]
    assert told.keys() == shown.keys()
    assert told | {"request_id": ""} == shown | {"request_id": ""}

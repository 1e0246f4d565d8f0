"""Spans of requests and stages, taken as an exporter gets them."""

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from services.loopback import LoopbackClient

from api.http import app as application
from api.http.tracing import Traces, tracing
from api.service import create_service
from engine.settings import ServerSettings


def test_a_search_is_a_span_with_its_stages_in_it(
    archive, indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    monkeypatch.setattr(application, "tracing", lambda _: traces)
    content = indexed.files["ct"][0].read_bytes()
    with LoopbackClient(create_service(archive=archive)) as client:
        sent = {"file": ("HIDDEN-1", content)}
        assert client.post("/v1/search?HIDDEN-2", files=sent).status_code == 200
        assert client.get("/v1/images/HIDDEN-3").status_code == 404
        traces.flush()
        spans = exporter.get_finished_spans()
    (search,) = [span for span in spans if span.name == "POST /v1/search"]
    assert search.attributes["http.response.status_code"] == 200
    stages = [span for span in spans if span.parent is not None]
    assert {"read", "encode", "rank"} <= {span.name for span in stages}
    for one in stages:
        assert one.parent.span_id == search.context.span_id
        assert search.start_time <= one.start_time <= one.end_time <= search.end_time
    (image,) = [span for span in spans if span.name == "GET /v1/images/{id}"]
    assert image.attributes["error.type"] == "image-not-found"
    said = "".join(span.to_json() for span in spans)
    assert "HIDDEN" not in said
    assert "1.2.3." not in said


def test_none_are_made_unless_settings_say_where_they_go() -> None:
    assert tracing(ServerSettings()) is None

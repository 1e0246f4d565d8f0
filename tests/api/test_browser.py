"""Pages of other origins in a real browser: which may ask, and which may show ours in a frame."""

import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from services.needed import package
from services.other_site import other_site
from services.running import served

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import ServerSettings
from indexer.ledger.database import Database

_ASKS = """<!doctype html><p id="told">nothing</p><script>
fetch("{address}/v1/facets", {{headers: {{Authorization: "Bearer {key}"}}}})
  .then(answer => answer.json().then(found => answer.headers.get("RateLimit") + found.count))
  .then(text => {{ document.getElementById("told").textContent = "told " + text }},
        error => {{ document.getElementById("told").textContent = "refused" }})
</script>"""
_FRAMES = '<!doctype html><iframe src="{address}/login"></iframe>'


def shown(url: str, folder: Path) -> str:
    """The page as the browser has it in the end."""
    done = subprocess.run(
        [
            *(package("chromium"), "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--user-data-dir={folder}", "--virtual-time-budget=15000", "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done.stdout


def _stylesheets(app) -> float:
    """How often what the page needs was asked for: only pages that are shown ask for it."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(app.state.metrics.text().decode())
        for sample in family.samples
        if sample.name == "precedent_requests_total"
        and sample.labels["route"] == "/static/{path:path}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_a_browser_keeps_to_what_the_settings_name(
    named: bool, indexed, archive, tmp_path: Path
) -> None:
    package("chromium")
    settings = indexed.copy(tmp_path / "data")
    with Database(f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}") as database:
        _, key = Keys(database).create("portal", [Scope.SEARCH])
    html = [""]
    with other_site(lambda _: html[-1]) as origin:
        names = [origin] if named else ["https://elsewhere.example"]
        server = ServerSettings(allowed_origins=names, frame_ancestors=names)
        app = create_service(settings.model_copy(update={"server": server}), archive)
        with served(app, server) as address:
            html.append(_ASKS.format(address=address, key=key))
            told = shown(origin, tmp_path / "first")
            if named:
                assert '"key";r=' in told.replace("&quot;", '"')
            else:
                assert ">refused<" in told
            html.append(_FRAMES.format(address=address))
            shown(origin, tmp_path / "second")
            assert (_stylesheets(app) > 0) is named

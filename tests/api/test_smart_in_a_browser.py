"""An EHR opens the page in a real browser: in a tab of its own, and in a frame of the EHR's."""

from pathlib import Path

import pytest
from services.browser import Browser
from services.ehr import CLIENT, Ehr, ehr
from services.identity_provider import IdentityProvider
from services.running import served

from api.cli.serve import listening
from api.service import create_service
from engine.settings import Settings
from engine.smart_settings import SmartSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STUDY = "1.2.4.0"
PEOPLE = {"ann": {"fhirUser": "Practitioner/ann", "name": "Ann Weber"}}


def free_port() -> int:
    with listening("127.0.0.1", 0) as socket:
        return int(socket.getsockname()[1])


def with_smart(settings: Settings, one: SmartSettings, ancestors: tuple[str, ...] = ()) -> Settings:
    server = settings.server.model_copy(update={"frame_ancestors": ancestors})
    return settings.model_copy(update={"smart": {"ehr": one}, "server": server})


def test_a_tab_of_its_own(indexed, tmp_path: Path) -> None:
    """The EHR is a certified provider, at which somebody signs in by a form."""
    copied = indexed.copy(tmp_path / "data")
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    smart = {
        "launches": {"l-1": {"fhirContext": [{"reference": "ImagingStudy/is-1"}]}},
        "studies": {"is-1": STUDY},
    }
    with IdentityProvider({}, PEOPLE, page, smart=smart) as provider:
        (tmp_path / "secret").write_text(provider.page_secret)
        settings = SmartSettings(
            issuer=f"{provider.issuer}/fhir",
            client_id="page",
            client_secret_file=tmp_path / "secret",
            page_url=page,
            tenant="default",
            timeout_seconds=20,
        )
        app = create_service(with_smart(copied, settings))
        with served(app, port=port), Browser(tmp_path / "browser") as browser:
            browser.open(f"{page}/smart/launch?iss={provider.issuer}/fhir&launch=l-1")
            browser.until("document.querySelector('[name=login]') !== null")
            browser.evaluate(
                "document.querySelector('[name=login]').value = 'ann';"
                "document.querySelector('[name=password]').value = 'any';"
                "document.forms[0].requestSubmit()"
            )
            # It asks whether the page may know who that is.
            browser.until("document.querySelector('[name=prompt][value=consent]') !== null")
            browser.evaluate("document.forms[0].requestSubmit()")
            browser.until(f"location.href === '{page}/?study={STUDY}'")
            browser.until_text("Sign out")
            assert browser.evaluate("document.querySelectorAll('article').length") > 0
            assert browser.evaluate("document.cookie") == ""
            assert not browser.evaluate("document.referrer.includes('code=')")


def test_a_frame_of_the_ehrs_page(indexed, tmp_path: Path) -> None:
    """By another name it is another site: browsers send no usual cookie into its frame."""
    copied = indexed.copy(tmp_path / "data")
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    running: list[Ehr] = []
    framing = "<!doctype html><title>EHR</title><iframe title='Similar cases' src='{}'></iframe>"
    with ehr(page, lambda: framing.format(running[0].launch("l-1"))) as one:
        running.append(one)
        one.context["l-1"] = {"fhirContext": [{"reference": "ImagingStudy/is-1"}]}
        one.studies["is-1"] = STUDY
        settings = SmartSettings(
            issuer=one.iss,
            client_id=CLIENT,
            page_url=page,
            tenant="default",
            framed=True,
            timeout_seconds=20,
        )
        app = create_service(with_smart(copied, settings, (one.origin,)))
        with served(app, port=port), Browser(tmp_path / "browser") as browser:
            browser.open(one.origin + "/")
            frame = browser.frame(page)
            frame.until_text("Sign out")
            assert frame.evaluate("location.search") == f"?study={STUDY}"
            # Going on within it, the session holds.
            frame.evaluate("document.querySelector('a.name').click()")
            frame.until("location.search === ''")
            frame.until_text("Sign out")
            # Outside of the frame the browser has no session: its cookie is the frame's own.
            browser.open(page + "/")
            browser.until("location.pathname === '/login'")
            # A frame of another site stays blank.
            with ehr(page, lambda: framing.format(page + "/login")) as other:
                browser.open(other.origin + "/")
                browser.until("document.readyState === 'complete' && document.title === 'EHR'")
                assert "Sign in" not in browser.frame(page).evaluate("document.body.innerText")

"""Templates of links into viewers are checked when the settings are loaded."""

import pytest

from engine.errors import SettingsError
from engine.integration_settings import ViewerSettings
from engine.settings import load_settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either kind"),
        ({"kind": "ohif"}, "belong together"),
        ({"url": "https://v.example", "template": "https://v.example/{study}"}, "belong together"),
        (
            {"kind": "ohif", "url": "https://v.example", "template": "https://v.example/{study}"},
            "either kind",
        ),
        ({"kind": "ohif", "url": "http://v.example"}, "no address of a viewer"),
        ({"kind": "ohif", "url": "javascript:alert(1)"}, "no address of a viewer"),
        ({"kind": "ohif", "url": "https://u:p@v.example"}, "no address of a viewer"),
        ({"kind": "ohif", "url": "https://v.example/?a=b"}, "no address of a viewer"),
        ({"kind": "weasis", "url": 'https://v.example/"x'}, "no address of a viewer"),
        ({"kind": "stone", "url": "https://v.example", "data_source": "a"}, "OHIF's"),
        ({"kind": "ohif", "url": "https://v.example", "beside": "https://v/{study}"}, "beside"),
        ({"template": "https://v.example/{study}/{patient}"}, r"\{patient\}, which stands for"),
        ({"template": "https://v.example/{study.__class__}"}, "stands for nothing"),
        ({"template": "https://v.example/{study!r}"}, "stands for nothing"),
        ({"template": "https://v.example/{study:>99}"}, "stands for nothing"),
        ({"template": "https://v.example/{}"}, "stands for nothing"),
        ({"template": "https://v.example/{study"}, "without its other one"),
        ({"template": "https://v.example/{series}"}, "does not say which study"),
        ({"template": "http://v.example/{study}"}, "no link"),
        ({"template": "javascript://v.example/%0a{study}"}, "no link"),
        ({"template": "//v.example/{study}"}, "no link"),
        ({"template": "https://{study}.example/"}, "no link"),
        ({"template": "https://v.example@evil.example/{study}"}, "no link"),
        ({"template": 'https://v.example/"{study}'}, "no link"),
        ({"template": "weasis://%24dicom%3Ars+--url+%22http%3A%2F%2Fp.example%22+{study}"}, "no l"),
        ({"template": "https://v.example/{study},{query_study}"}, "belongs into beside"),
        (
            {"template": "https://v.example/{study}", "beside": "https://v.example/{study}"},
            "has to name",
        ),
        ({"template": "https://v.example/{study}", "title": ""}, "title"),
        ({"template": "https://v.example/{study}", "sources": ()}, "sources"),
    ],
)
def test_what_leads_nowhere_is_refused(given, said) -> None:
    with pytest.raises(SettingsError, match=said) as raised:
        load_settings(viewers={"mine": {"sources": ("pacs",), **given}})
    assert "viewers.mine" in str(raised.value)


def test_a_viewer_says_whose_studies_it_has() -> None:
    with pytest.raises(SettingsError, match=r"viewers\.mine\.sources"):
        load_settings(viewers={"mine": {"template": "https://v.example/{study}"}})


@pytest.mark.parametrize("name", ["", "Mine", "a b", "<b>", "x" * 33])
def test_names_of_viewers_are_plain(name) -> None:
    with pytest.raises(SettingsError, match="viewers"):
        load_settings(viewers={name: {"template": "https://v.example/{study}", "sources": ["a"]}})


def test_a_viewer_comes_from_variables(monkeypatch) -> None:
    monkeypatch.setenv("PRECEDENT_VIEWERS__OHIF__KIND", "ohif")
    monkeypatch.setenv("PRECEDENT_VIEWERS__OHIF__URL", "http://localhost:3000/")
    monkeypatch.setenv("PRECEDENT_VIEWERS__OHIF__SOURCES", '["pacs"]')
    found = load_settings().viewers["ohif"]
    assert (found.url, found.shown_as("ohif")) == ("http://localhost:3000", "OHIF")


@pytest.mark.parametrize(
    "template",
    [
        "https://v.example:8443/a{{b}}/{study}?i={sop}&s={series}&f={frame}#x",
        "http://127.0.0.1:8042/{study}",
        "weasis://%24dicom%3Ars+--url+%22https%3A%2F%2Fp.example%2Fdicom-web%22+{study}",
    ],
)
def test_templates_that_are_taken(template: str) -> None:
    assert ViewerSettings(template=template, sources=("a",)).templates == (template,)

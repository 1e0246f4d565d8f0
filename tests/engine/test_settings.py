"""Settings come from a file and the environment, and mistakes in them are named."""

import logging
import os
from pathlib import Path

import pytest

from engine import environment
from engine.errors import SettingsError
from engine.settings import DicomWebSettings, FolderSettings, Settings, load_settings

SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No settings of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("PRECEDENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "_told", set())


def file(text: str, name: str = "precedent.toml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def message(**overrides) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return str(caught.value)


def test_defaults_need_nothing():
    settings = load_settings()
    assert settings.data_dir == Path("precedent-data")
    assert settings.model is None
    assert settings.server.host == "127.0.0.1"


def test_a_nested_variable_changes_one_value_only(monkeypatch):
    monkeypatch.setenv("PRECEDENT_SEARCH__MIN_CANDIDATES", "7")
    monkeypatch.setenv("PRECEDENT_DATA_DIR", "/archive/index")
    settings = load_settings()
    assert settings.search.min_candidates == 7
    assert settings.search.candidates_per_hit == Settings().search.candidates_per_hit
    assert settings.data_dir == Path("/archive/index")


def test_argument_beats_variable_beats_file(monkeypatch):
    file('data_dir = "from-file"\n[search]\nk = 3\nmin_candidates = 11\n')
    assert load_settings().data_dir == Path("from-file")
    monkeypatch.setenv("PRECEDENT_SEARCH__K", "4")
    monkeypatch.setenv("PRECEDENT_DATA_DIR", "from-variable")
    settings = load_settings()
    assert (settings.search.k, settings.search.min_candidates) == (4, 11)
    assert settings.data_dir == Path("from-variable")
    assert load_settings(data_dir=Path("from-argument")).data_dir == Path("from-argument")
    assert load_settings(data_dir=None).data_dir == Path("from-variable")


def test_the_file_may_be_named(monkeypatch):
    file("[search]\nk = 3\n")
    monkeypatch.setenv("PRECEDENT_CONFIG", str(file("[search]\nk = 5\n", "other.toml")))
    assert load_settings().search.k == 5


def test_a_named_file_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setenv("PRECEDENT_CONFIG", "/nowhere/precedent.toml")
    text = message()
    assert "PRECEDENT_CONFIG" in text
    assert "/nowhere/precedent.toml" in text


@pytest.mark.parametrize(
    ("text", "name"), [("serch = 1\n", "serch"), ("[search]\nkk = 1\n", "search.kk")]
)
def test_an_unknown_name_in_the_file_is_refused(text, name):
    file(text)
    assert name in message()


def test_an_unknown_nested_variable_is_refused(monkeypatch):
    monkeypatch.setenv("PRECEDENT_SEARCH__KK", "1")
    assert "PRECEDENT_SEARCH__KK" in message()


def test_an_unknown_argument_is_refused():
    assert "serch" in message(serch=1)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PRECEDENT_SEARCH__K", "0"),
        ("PRECEDENT_SEARCH__K", "1001"),
        ("PRECEDENT_SEARCH__K", "many"),
        ("PRECEDENT_LIMITS__MIN_SIDE", "-3"),
        ("PRECEDENT_INDEXING__READER_SECONDS", "0"),
        ("PRECEDENT_SERVER__PORT", "65536"),
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert variable in message()


def test_a_bad_value_in_the_file_names_its_setting():
    file("[search]\nk = 5000\n")
    assert "search.k" in message()


def test_a_file_that_is_not_toml_is_named():
    file("[search\n")
    assert "precedent.toml" in message()


def test_a_named_file_that_is_not_toml_is_named(monkeypatch):
    monkeypatch.setenv("PRECEDENT_CONFIG", str(file("[search\n", "other.toml")))
    assert "other.toml" in message()


def test_a_group_variable_that_is_not_json_is_named(monkeypatch):
    monkeypatch.setenv("PRECEDENT_SEARCH", "{k: 3")
    assert "PRECEDENT_SEARCH" in message()


@pytest.mark.parametrize(
    "text",
    [
        f'pseudonym_key = ["{SECRET}"]\n',
        f"pseudonym_key = {SECRET}\n",
        f'pseudonym_key = "{SECRET}"\nserch = 1\n',
        f'pseudonym_key = "{SECRET}"\n[search]\nk = 0\n',
    ],
)
def test_no_message_repeats_a_secret(text):
    file(text)
    assert SECRET not in message()


def test_a_secret_is_kept_but_not_shown(monkeypatch):
    monkeypatch.setenv("PRECEDENT_PSEUDONYM_KEY", SECRET)
    settings = load_settings()
    assert settings.pseudonym_key.get_secret_value() == SECRET
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


def test_settings_do_not_change_underfoot():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.data_dir = Path("elsewhere")
    with pytest.raises(ValueError, match="frozen"):
        settings.search.k = 3


# Paths.


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    file("[search]\nk = 7\n", "home/settings.toml")
    file("""
        model = "~/model"
        [sources.ct]
        kind = "folder"
        paths = ["~/ct", "/data/~ct"]
        [sources.pacs]
        kind = "dicomweb"
        url = "https://pacs.example"
        ca_file = "~/ca.pem"
    """)
    monkeypatch.setenv("PRECEDENT_DATA_DIR", "~/index")
    settings = load_settings()
    assert settings.data_dir == tmp_path / "home/index"
    assert settings.model == tmp_path / "home/model"
    folder, pacs = settings.sources["ct"], settings.sources["pacs"]
    assert isinstance(folder, FolderSettings)
    assert folder.paths == (tmp_path / "home/ct", Path("/data/~ct"))
    assert isinstance(pacs, DicomWebSettings)
    assert pacs.ca_file == tmp_path / "home/ca.pem"
    monkeypatch.setenv("PRECEDENT_CONFIG", "~/settings.toml")
    assert load_settings().search.k == 7


def test_the_home_of_nobody_is_told(monkeypatch):
    monkeypatch.setenv("PRECEDENT_DATA_DIR", "~no-such-user-here/index")
    assert "PRECEDENT_DATA_DIR" in message()


# Variables that are no settings.


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PRECEDENT_SEARCH__MIN_CANDIDATE", "search.min_candidates"),
        ("PRECEDENT_INDEXING__READER", "indexing.readers"),
    ],
)
def test_a_misspelt_nested_variable_names_the_nearest_setting(monkeypatch, variable, meant):
    monkeypatch.setenv(variable, "1")
    assert variable in message()
    assert meant in message()


def test_other_unknown_variables_give_one_warning(monkeypatch, caplog):
    for name in ("PRECEDENT_DATADIR", "PRECEDENT_SERCH__K", "precedent_colour"):
        monkeypatch.setenv(name, "1")
    with caplog.at_level(logging.WARNING):
        load_settings()
        load_settings()
    (warning,) = caplog.records
    text = warning.getMessage()
    assert "PRECEDENT_DATADIR (is PRECEDENT_DATA_DIR meant?)" in text
    assert "PRECEDENT_SERCH__K (is PRECEDENT_SEARCH__K meant?)" in text
    assert "precedent_colour" in text


_BY_KUBERNETES = {
    "PRECEDENT_SERVICE_HOST": "10.0.171.239",
    "PRECEDENT_SERVICE_PORT": "8000",
    "PRECEDENT_SERVICE_PORT_HTTP": "8000",
    "PRECEDENT_PORT": "tcp://10.0.171.239:8000",
    "PRECEDENT_PORT_8000_TCP": "tcp://10.0.171.239:8000",
    "PRECEDENT_PORT_8000_TCP_PROTO": "tcp",
    "PRECEDENT_PORT_8000_TCP_PORT": "8000",
    "PRECEDENT_PORT_8000_TCP_ADDR": "10.0.171.239",
    "PRECEDENT_RECEIVE_SERVICE_HOST": "10.0.171.240",
    "PRECEDENT_RECEIVE_PORT_11112_TCP": "tcp://10.0.171.240:11112",
    "PRECEDENT_STORE_PORT": "tcp://10.0.171.241:6333",
}
"""For services called precedent, precedent-receive and precedent-store."""


def test_what_others_set_is_no_mistake(monkeypatch, caplog):
    others = dict.fromkeys((*environment.NOT_SETTINGS, "PRECEDENT_TEST_SERVICES"), "1")
    del others["PRECEDENT_CONFIG"]  # must name a file
    for name, value in {**others, **_BY_KUBERNETES}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert load_settings() == Settings()
    assert caplog.records == []


def test_every_setting_is_known_by_its_variable(monkeypatch, caplog):
    monkeypatch.setenv("PRECEDENT_PRECISION", "fp32")
    monkeypatch.setenv("PRECEDENT_STORE", '{"shards": 2}')
    monkeypatch.setenv("PRECEDENT_SOURCES__CT__KIND", "folder")
    monkeypatch.setenv("PRECEDENT_SOURCES__CT__PATHS", '["/ct"]')
    with caplog.at_level(logging.WARNING):
        assert load_settings().store.shards == 2
    assert caplog.records == []


@pytest.mark.parametrize("uid", ["1.2.840.113619.4.26", "1.2"])
def test_private_sop_classes_are_uids(monkeypatch, uid):
    monkeypatch.setenv("PRECEDENT_RECEIVE__SOP_CLASSES", f'["{uid}"]')
    assert load_settings().receive.sop_classes == (uid,)


@pytest.mark.parametrize("uid", ["CT", "1..2", "1.02", "1", "1." + "2" * 64])
def test_what_is_no_uid_is_no_sop_class(monkeypatch, uid):
    monkeypatch.setenv("PRECEDENT_RECEIVE__SOP_CLASSES", f'["{uid}"]')
    assert "PRECEDENT_RECEIVE__SOP_CLASSES" in message()

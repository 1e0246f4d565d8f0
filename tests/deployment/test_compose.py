"""docker/compose.yaml: valid, closed to the outside, and settings that Precedent takes."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kombu
import pytest
from deployed import (
    COMPOSE_ONLY,
    DOCKER,
    answering,
    check_command,
    compose,
    example_variables,
    interpolated,
    is_setting,
    variables,
)
from services.needed import package

from engine.settings import load_settings
from engine.store.server_version import OLDEST, RUN_ON

OURS = ("api", "worker", "receive")
DATABASES = ("qdrant", "valkey", "postgres")
SECRETS = {
    "PRECEDENT_PSEUDONYM_KEY": "k" * 64,
    "QDRANT_API_KEY": "of-qdrant",
    "POSTGRES_PASSWORD": "of-postgres",
    "VALKEY_PASSWORD": "of-valkey",
}
REQUIRED = SECRETS | {"ARCHIVE_DIR": "/srv/archive"}
SECRET = re.compile("(PASSWORD|KEY|TOKEN|SECRET)$")
SOURCE_CREDENTIALS = ("USERNAME", "PASSWORD", "TOKEN")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return interpolated(compose(), REQUIRED)["services"]


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets the variables of a service, and nothing else that Precedent looks at."""

    def use(service: dict[str, Any], config: Path = DOCKER / "precedent.toml", **more: str) -> None:
        for name in list(os.environ):
            if name.startswith("PRECEDENT_"):
                monkeypatch.delenv(name)
        for name, value in (service["environment"] | more).items():
            if value is not None:
                monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("PRECEDENT_CONFIG", str(config))

    monkeypatch.chdir(tmp_path)
    return use


@pytest.mark.parametrize(
    "name", ["compose.yaml", "compose.gpu.yaml", "compose.cluster.yaml", "qdrant.yaml"]
)
def test_it_follows_the_compose_specification(name):
    if find_spec("check_jsonschema") is None:
        pytest.fail("the schema comes with check-jsonschema; pip install check-jsonschema")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec",
         DOCKER / name],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "files",
    [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"], ["compose.cluster.yaml"]],
    ids=["cpu", "gpu", "cluster"],
)
def test_docker_compose_takes_it(files, tmp_path):
    command = next((c for c in (["docker", "compose"], ["docker-compose"]) if is_second(c)), None)
    if command is None:
        pytest.skip("there is no Docker Compose 2 here, and Debian 12 has none to install")
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in REQUIRED.items()))
    named = [word for file in files for word in ("-f", file)]
    done = subprocess.run(
        [*command, "--env-file", env_file, *named, "--profile", "receive",
         "config", "--quiet"],
        cwd=DOCKER,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def is_second(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
    return done.returncode == 0 and not done.stdout.startswith("1.")


def test_what_services_refer_to_is_there(services):
    document = compose()
    for name, service in services.items():
        assert set(service["networks"]) <= set(document["networks"])
        mounted = {
            v["source"] for v in service["volumes"] if v["type"] == "volume" and "source" in v
        }
        assert mounted <= set(document["volumes"])
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert "healthcheck" in services[other], f"{name} waits for {other}"
    used = {v["source"] for s in services.values() for v in s["volumes"] if "source" in v}
    assert set(document["volumes"]) <= used


def test_precedent_waits_for_its_databases(services):
    for name in OURS:
        assert set(services[name]["depends_on"]) == set(DATABASES)


def test_without_a_secret_it_says_which_and_does_not_start():
    text = (DOCKER / "compose.yaml").read_text()
    found = variables(text)
    assert {name for name, operator, _ in found if operator == "?"} == set(REQUIRED)
    assert {operator for _, operator, _ in found} == {"?", "-"}, "one may be left out silently"
    assert all(words for _, operator, words in found if operator == "?")
    assert not re.search(r"\$\w", text.replace("$$", "")), "${NAME} can say what is missing"
    for name in REQUIRED:
        with pytest.raises(KeyError, match=name):
            interpolated(compose(), REQUIRED | {name: ""})


def test_no_secret_has_a_default():
    for name, operator, default in variables((DOCKER / "compose.yaml").read_text()):
        if SECRET.search(name):
            assert operator == "?", f"{name} has the default {default!r}"
    for service in compose()["services"].values():
        for name, value in service["environment"].items():
            if SECRET.search(name):
                assert value is None or value.startswith("${"), f"{name} is written down"
            if "@" in str(value):
                assert re.search(r":\$\{\w+:\?[^}]+\}@", value), f"{name} holds a password"


def test_the_example_names_every_variable_and_holds_no_secret():
    given, offered = example_variables()
    used = {name for file in ("compose.yaml", "compose.gpu.yaml")
            for name, _, _ in variables((DOCKER / file).read_text())}  # fmt: skip
    handed_on = {f"PRECEDENT_SOURCES__PACS__{what}" for what in SOURCE_CREDENTIALS}
    assert set(given) == set(REQUIRED)
    assert not any(given.values())
    assert offered | set(given) == used | handed_on


@pytest.mark.parametrize("name", OURS)
def test_its_settings_are_taken(services, environment, name):
    environment(services[name])
    settings = load_settings()
    assert settings.store.url == "http://qdrant:6333"
    assert settings.store.api_key.get_secret_value() == "of-qdrant"
    assert settings.ledger.url.get_secret_value() == (
        "postgresql+psycopg://precedent:of-postgres@postgres:5432/precedent"
    )
    assert settings.jobs.broker.get_secret_value() == "redis://:of-valkey@valkey:6379/0"
    assert settings.pseudonym_key.get_secret_value() == "k" * 64
    assert settings.data_dir == Path("/data")
    assert settings.sources["archive"].paths == (Path("/archive"),)


def test_every_variable_is_one_that_precedent_looks_at(services):
    files = (compose(), compose("compose.gpu.yaml"))
    for service in (s for file in files for s in file["services"].values()):
        for name in service.get("environment", {}):
            assert not name.startswith("PRECEDENT_") or is_setting(name), name
    given, offered = example_variables()
    for name in given.keys() | offered:
        assert not name.startswith("PRECEDENT_") or (name in COMPOSE_ONLY) != is_setting(name)


def test_a_password_of_the_pacs_comes_from_the_environment(services, environment, tmp_path):
    text = (DOCKER / "precedent.toml").read_text()
    everything = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    config = tmp_path / "precedent.toml"
    config.write_text(everything)
    secrets = {"PRECEDENT_SOURCES__PACS__USERNAME": "index",
               "PRECEDENT_SOURCES__PACS__PASSWORD": "of-the-pacs"}  # fmt: skip
    environment(services["worker"], config, **secrets)
    settings = load_settings()
    assert settings.sources["pacs"].password.get_secret_value() == "of-the-pacs"
    assert settings.sources["pacs"].window == settings.sources["archive"].window == "20:00-06:00"
    assert settings.receive.allowed_ae_titles == ("PACS",)


@pytest.mark.parametrize("name", OURS)
def test_commands_and_checks_are_real(services, name):
    service = services[name]
    check_command(service["command"])
    check = service.get("healthcheck", {}).get("test", [])
    if check[:2] == ["CMD", "precedent"]:
        check_command(check[2:])


def test_only_the_page_is_reached_from_outside_and_only_from_this_machine(services):
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {"api": ["127.0.0.1:8000:8000"], "receive": ["127.0.0.1:11112:11112"]}
    assert services["receive"]["profiles"] == ["receive"]
    assert compose()["networks"]["inside"] == {"internal": True}
    for name in DATABASES:
        assert services[name]["networks"] == ["inside"]


def test_containers_have_no_rights_and_bounds(services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service), name
        places = [v["target"] for v in service["volumes"]] + service.get("tmpfs", [])
        assert "/var/run/docker.sock" not in places, name
    for name in ("valkey", "postgres"):
        assert services[name]["user"] == "999:999"
    assert services["qdrant"]["image"].endswith("-unprivileged")


def test_images_are_pinned(services):
    for name in DATABASES:
        tag = services[name]["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+(\.\d+)?(-\w+)?$", tag), services[name]["image"]


def test_the_server_has_the_version_that_was_run(services):
    assert services["qdrant"]["image"] == f"qdrant/qdrant:v{RUN_ON}-unprivileged"
    root = DOCKER.parent
    pages = [page.read_text() for page in (root / "README.md", *(root / "docs").glob("*.md"))]
    spelt = re.compile(r"Qdrant (?:server )?(\d+\.\d+\.\d+)")
    named = [found for page in pages for found in spelt.findall(page)]
    assert set(named) == {RUN_ON}
    oldest = ".".join(map(str, OLDEST))
    assert any(f"Qdrant server, {oldest} or later" in " ".join(page.split()) for page in pages)


def test_the_archive_cannot_be_changed(services):
    binds = [v for s in services.values() for v in s["volumes"] if v["type"] == "bind"]
    assert {v["target"] for v in binds} == {"/archive", "/etc/precedent/precedent.toml"}
    for bind in binds:
        assert bind["read_only"] is True
        # A typing error must not make an empty folder that is then indexed.
        assert bind["bind"] == {"create_host_path": False}


def test_workers_are_given_time_to_finish(services):
    for name in ("worker", "receive"):
        assert re.match(r"[1-9]\d*m$", services[name]["stop_grace_period"])


def test_a_gpu_worker_encodes_one_batch_at_a_time(services, environment):
    override = compose("compose.gpu.yaml")["services"]["worker"]
    environment(services["worker"], **override["environment"])
    settings = load_settings()
    assert settings.indexing.encoders == 1
    assert settings.device == "cuda"
    (device,) = override["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_check_of_qdrant_goes_by_what_it_answers(services, status, healthy):
    check = services["qdrant"]["healthcheck"]["test"]
    assert check[0] == "CMD"
    with answering("/readyz", status) as port:
        command = [word.replace("6333", str(port)) for word in check[1:]]
        done = subprocess.run(command, capture_output=True, timeout=5)
    assert (done.returncode == 0) is healthy


@pytest.mark.slow
def test_the_broker_asks_for_its_password(services, tmp_path):
    shell, option, script = services["valkey"]["command"]
    (tmp_path / "valkey-server").symlink_to(package("redis-server"))
    socket = tmp_path / "socket"
    here = f"dir {tmp_path}\nport 0\nunixsocket {socket}"
    command = [shell, option, script.replace("dir /data", here)]
    path = f"{tmp_path}:{os.environ['PATH']}"
    with subprocess.Popen(
        command, env={"PATH": path, "VALKEY_PASSWORD": "of-valkey"}, stdout=subprocess.DEVNULL
    ) as server:
        try:
            with kombu.Connection(f"redis+socket://:of-valkey@{socket}") as connection:
                connection.ensure_connection(max_retries=20, interval_start=0.1)
            bare = kombu.Connection(f"redis+socket://{socket}")
            with bare, pytest.raises(bare.connection_errors, match=r"(?i)auth"):
                bare.connect()
        finally:
            server.terminate()
    assert (tmp_path / "appendonlydir").is_dir()

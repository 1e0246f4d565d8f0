"""docker/compose.cluster.yaml: three nodes, two replicas, secrets in files alone."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

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

from engine.settings import Settings, load_settings
from engine.store.server_version import RUN_ON

FILE = "compose.cluster.yaml"
OURS = ("api-1", "api-2", "worker", "receive")
NODES = ("qdrant-1", "qdrant-2", "qdrant-3")
DATABASES = (*NODES, "valkey", "postgres")
SECRETS = ("pseudonym_key", "qdrant_api_key", "postgres_password", "valkey_password", "ledger_url",
           "broker_url")  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return interpolated(compose(FILE), {"ARCHIVE_DIR": "/srv/archive"})


@pytest.fixture(scope="module")
def services(document) -> dict[str, Any]:
    return document["services"]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory) -> Path:
    """What docker/make-secrets writes."""
    folder = tmp_path_factory.mktemp("made") / "secrets"
    subprocess.run([DOCKER / "make-secrets", folder], check=True)
    return folder


@pytest.fixture
def settings_of(services, secrets, monkeypatch, tmp_path):
    """The settings of a service, with its secrets in another folder than /run/secrets."""

    def load(name: str) -> Settings:
        for one in list(os.environ):
            if one.startswith("PRECEDENT_"):
                monkeypatch.delenv(one)
        for one, value in services[name]["environment"].items():
            monkeypatch.setenv(one, str(value).replace("/run/secrets", str(secrets)))
        monkeypatch.setenv("PRECEDENT_CONFIG", str(DOCKER / "precedent.toml"))
        return load_settings()

    monkeypatch.chdir(tmp_path)
    return load


def secret(folder: Path, name: str) -> str:
    return (folder / name).read_text().strip()


@pytest.mark.parametrize("name", OURS)
def test_its_settings_are_taken(settings_of, services, secrets, name):
    settings = settings_of(name)
    assert settings.store.urls == tuple(f"http://{node}:6333" for node in NODES)
    assert (settings.store.shards, settings.store.replication_factor) == (3, 2)
    assert settings.store.timeout_seconds > 10  # how long a node waits for one that hangs
    assert settings.store.api_key.get_secret_value() == secret(secrets, "qdrant_api_key")
    assert settings.pseudonym_key.get_secret_value() == secret(secrets, "pseudonym_key")
    password = secret(secrets, "postgres_password")
    assert settings.ledger.url.get_secret_value() == (
        f"postgresql+psycopg://precedent:{password}@postgres:5432/precedent"
    )
    password = secret(secrets, "valkey_password")
    assert settings.jobs.broker.get_secret_value() == f"redis://:{password}@valkey:6379/0"
    assert settings.data_dir == Path("/data")
    check_command(services[name]["command"])


def test_the_replicas_believe_the_proxy_alone(settings_of, document, services):
    address = services["proxy"]["networks"]["front"]["ipv4_address"]
    addresses = {services[name]["networks"]["front"]["ipv4_address"] for name in ("api-1", "api-2")}
    assert len(addresses | {address}) == 3
    (subnet,) = document["networks"]["front"]["ipam"]["config"]
    assert all(one.startswith(subnet["subnet"].rpartition(".")[0]) for one in addresses)
    for name in ("api-1", "api-2"):
        assert settings_of(name).server.trusted_proxies == (f"{address}/32",)


def test_no_secret_is_in_an_environment_or_a_command(document, services):
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("(PASSWORD|KEY|TOKEN|SECRET|URL|BROKER)$", variable):
                pytest.fail(f"{name} has {variable}")
            if variable.endswith("_FILE") and variable != "QDRANT_INIT_FILE_PATH":
                assert value.removeprefix("/run/secrets/") in service["secrets"], variable
        read = re.findall(r"/run/secrets/(\w+)", json.dumps([service.get("command")]))
        assert set(read) <= set(service.get("secrets", []))
        assert set(service.get("secrets", [])) <= set(document["secrets"])
    used = {one for service in services.values() for one in service.get("secrets", [])}
    assert used == set(document["secrets"]) == {*SECRETS, "tls_certificate", "tls_key"}
    for name, one in document["secrets"].items():
        assert one == {"file": f"./secrets/{name}"}


def test_secrets_are_made_once_and_for_their_owner_alone(secrets):
    assert {path.name for path in secrets.iterdir()} == set(SECRETS)
    assert secrets.stat().st_mode & 0o777 == 0o700
    before = {name: secret(secrets, name) for name in SECRETS}
    assert len(set(before.values())) == len(SECRETS)
    assert re.fullmatch("[0-9a-f]{64}", before["pseudonym_key"])
    subprocess.run([DOCKER / "make-secrets", secrets], check=True)
    assert {name: secret(secrets, name) for name in SECRETS} == before


def test_nodes_are_of_the_version_that_was_run_and_know_each_other(services):
    for name in NODES:
        node = services[name]
        assert node["image"] == compose()["services"]["qdrant"]["image"]
        assert node["image"] == f"qdrant/qdrant:v{RUN_ON}-unprivileged"
        assert node["environment"]["QDRANT__CLUSTER__ENABLED"] == "true"
        (script,) = node["command"][2:]
        assert f"--uri http://{name}:6335" in script
        assert ("--bootstrap http://qdrant-1:6335" in script) is (name != "qdrant-1")
    stored = [v["source"] for name in NODES for v in services[name]["volumes"]]
    assert len(set(stored)) == len(stored) == 6


@pytest.mark.parametrize("content", ["of-qdrant\n", "", None])
def test_a_node_gets_the_key_or_does_not_start(services, tmp_path, content):
    shell, option, script = services["qdrant-2"]["command"]
    if content is not None:
        (tmp_path / "qdrant_api_key").write_text(content)
    entry = tmp_path / "entrypoint.sh"
    entry.write_text('#!/bin/sh\necho "$QDRANT__SERVICE__API_KEY" "$@"\n')
    entry.chmod(0o755)
    done = subprocess.run(
        [shell, option, script.replace("/run/secrets", str(tmp_path))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if content:
        assert done.stdout.split()[:2] == ["of-qdrant", "--uri"]
        assert done.returncode == 0
    else:
        assert done.stdout == ""
        assert done.returncode != 0


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_check_of_a_node_goes_by_what_it_answers(services, status, healthy):
    check = services["qdrant-3"]["healthcheck"]["test"]
    with answering("/readyz", status) as port:
        command = [word.replace("6333", str(port)) for word in check[1:]]
        done = subprocess.run(command, capture_output=True, timeout=5)
    assert (done.returncode == 0) is healthy


def test_what_services_refer_to_is_there(document, services):
    for service in services.values():
        assert set(service["networks"]) <= set(document["networks"])
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other]
    used = {
        v["source"]
        for s in services.values()
        for v in s.get("volumes", [])
        if v["type"] == "volume" and "source" in v
    }
    assert used == set(document["volumes"])
    for name in OURS:
        assert set(services[name]["depends_on"]) == set(DATABASES)
        check = services[name].get("healthcheck", {}).get("test", [])
        if check[:2] == ["CMD", "precedent"]:
            check_command(check[2:])


def test_containers_have_no_rights_and_bounds(document, services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service), name
        image = service["image"]
        assert "user" in service or "unprivileged" in image or image.startswith("precedent:")
        if not image.startswith("precedent:"):
            assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", image), image
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {"proxy": ["0.0.0.0:443:8443"], "receive": ["127.0.0.1:11112:11112"]}
    for name in DATABASES:
        assert services[name]["networks"] == ["inside"]
    assert document["networks"]["inside"] == {"internal": True}
    binds = [v for s in services.values() for v in s.get("volumes", []) if v["type"] == "bind"]
    for bind in binds:
        assert bind["read_only"] is True
        assert bind["bind"] == {"create_host_path": False}
    assert int(services["worker"]["scale"]) > 1


def test_the_example_names_every_variable(services):
    given, offered = example_variables(".env.cluster.example")
    found = variables((DOCKER / FILE).read_text())
    found += variables((DOCKER / "qdrant.yaml").read_text())
    assert {name for name, operator, _ in found if operator == "?"} == set(given) == {"ARCHIVE_DIR"}
    assert {operator for _, operator, _ in found} == {"?", "-"}, "one may be left out silently"
    assert offered | set(given) == {name for name, _, _ in found}
    for service in services.values():
        for name in service.get("environment", {}):
            assert not name.startswith("PRECEDENT_") or is_setting(name), name
    assert {name for name in offered if name.startswith("PRECEDENT_")} <= COMPOSE_ONLY

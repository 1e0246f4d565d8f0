"""docker/kubernetes: valid, without rights, and what docker/compose.cluster.yaml runs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deployed import DOCKER, check_command, compose, interpolated, is_setting
from typer.testing import CliRunner

from api.cli.main import app
from api.http.archive_figures import ArchiveFigures
from api.http.slots import ALWAYS_ANSWERED
from api.security.policy import POLICY
from engine.settings import ServerSettings, Settings
from indexer.ledger.database import Database

FOLDER = DOCKER / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()
OURS = {"api": "api-1", "worker": "worker", "receive": "receive", "migrate": "worker"}
"""Our pods, and the service of the compose file that each is like."""
DATABASES = {"qdrant": "qdrant-1", "postgres": "postgres", "valkey": "valkey"}
GIB = {"Gi": 1024**3, "Mi": 1024**2, "g": 1024**3, "m": 1024**2}


def resources(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


ALL = [one for path in FILES for one in resources(path)]


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in ALL if one["kind"] in kinds}


PODS = {
    name: one["spec"]["template"]
    for name, one in of_kind("Deployment", "StatefulSet", "Job").items()
}


def container(name: str) -> dict[str, Any]:
    (only,) = PODS[name]["spec"]["containers"]
    return only


def environment(name: str) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(name)["env"]}


def in_bytes(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", size).groups()
    return int(number) * GIB[unit]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return interpolated(compose("compose.cluster.yaml"), {"ARCHIVE_DIR": "/srv"})["services"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_follows_the_schemas_of_kubernetes(path: Path) -> None:
    for resource in resources(path):
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(resource, version, strict=True)
        assert resource["kind"] == "Namespace" or resource["metadata"]["namespace"] == "precedent"


def test_a_misspelt_member_would_be_noticed() -> None:
    wrong = json.loads(json.dumps(of_kind("Deployment")["api"]).replace("httpGet", "httpget"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_rights_and_bounds(name: str) -> None:
    pod, own = PODS[name]["spec"], container(name)
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert own["resources"]["limits"]["memory"] == own["resources"]["requests"]["memory"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not any("hostPath" in volume for volume in pod["volumes"])
    (labels,) = [one["metadata"]["labels"] for one in of_kind("Namespace").values()]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(("name", "like"), OURS.items())
def test_ours_get_what_the_compose_file_gives_them(services, name: str, like: str) -> None:
    there, here = services[like]["environment"], environment(name)
    assert all(is_setting(one) for one in here if one.startswith("PRECEDENT_"))
    if name == "migrate":
        there = {one: value for one, value in there.items() if one in here}
    # Kubernetes tells others only while it ends a pod.
    more = {"PRECEDENT_SERVER__DRAIN_SECONDS"} if name == "api" else set()
    assert set(here) == set(there) | more
    here = {one: value for one, value in here.items() if one not in more}
    own = {"PRECEDENT_STORE__URLS", "PRECEDENT_SERVER__TRUSTED_PROXIES"}  # of other networks
    assert {one for one in here if here[one] != str(there[one])} <= own
    assert len(json.loads(here["PRECEDENT_STORE__URLS"])) == 3
    if name != "migrate":
        assert container(name)["args"] == services[like]["command"]
        grace = {"30s": 30, "5m": 300}[services[like]["stop_grace_period"]]
        drained = float(environment(name).get("PRECEDENT_SERVER__DRAIN_SECONDS", "0"))
        assert PODS[name]["spec"]["terminationGracePeriodSeconds"] >= grace + drained
        assert in_bytes(container(name)["resources"]["limits"]["memory"]) == in_bytes(
            services[like]["mem_limit"].replace("g", "Gi")
        )
    check_command(container(name)["args"])
    assert "command" not in container(name), "the image's own entry point buries processes"


@pytest.mark.parametrize(("name", "like"), DATABASES.items())
def test_databases_are_those_of_the_compose_file(services, name: str, like: str) -> None:
    assert container(name)["image"] == services[like]["image"]
    there, here = services[like].get("environment", {}), container(name).get("env", [])
    assert {one["name"]: one["value"] for one in here if one["name"] != "PGDATA"} == there
    if name == "valkey":
        script = services[like]["command"][2]
        assert container(name)["command"][2].strip() == script.strip()
    check = services[like]["healthcheck"]["test"]
    probe = container(name)["readinessProbe"]
    if name == "postgres":
        assert probe["exec"]["command"] == check[1:]
    if name == "valkey":
        assert probe["exec"]["command"][2] == check[1]
    if name == "qdrant":
        assert probe["httpGet"]["path"] == "/readyz"


def test_secrets_are_files_and_each_gets_only_its_own() -> None:
    for name in PODS:
        pod, own = PODS[name]["spec"], container(name)
        (volume,) = [one for one in pod["volumes"] if "secret" in one]
        given = {item["path"] for item in volume["secret"]["items"]}
        (mount,) = [one for one in own["volumeMounts"] if one["name"] == volume["name"]]
        assert (mount["mountPath"], mount["readOnly"]) == ("/run/secrets", True)
        text = json.dumps([own.get("env"), own.get("command"), own.get("readinessProbe")])
        assert set(re.findall(r"/run/secrets/(\w+)", text)) == given, name
        for one in own.get("env", []):
            assert not re.search("(PASSWORD|KEY|TOKEN|SECRET|URL|BROKER)$", one["name"])
    made = (DOCKER / "make-secrets").read_text()
    named = {
        item["key"]
        for name in PODS
        for volume in PODS[name]["spec"]["volumes"]
        for item in volume.get("secret", {}).get("items", [])
    }
    assert all(one in made for one in named)


def ports(name: str) -> dict[str, int]:
    return {one["name"]: one["containerPort"] for one in container(name).get("ports", [])}


def probes(name: str) -> Iterator[dict[str, Any]]:
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if kind in container(name):
            yield container(name)[kind]


def test_ports_and_probes_are_those_of_the_programs() -> None:
    assert ports("api") == {"http": ServerSettings().port}
    assert ports("receive") == {"dicom": Settings().receive.port}
    for name in PODS:
        for probe in probes(name):
            if (got := probe.get("httpGet")) is not None:
                assert got["port"] in ports(name)
                assert name != "api" or got["path"] in ALWAYS_ANSWERED
                assert name != "api" or ("GET", got["path"]) in POLICY
            if (opened := probe.get("tcpSocket")) is not None:
                assert opened["port"] in ports(name)
            words = probe.get("exec", {}).get("command", [])
            if words[:1] == ["precedent"]:
                check_command(words[1:])
    assert container("api")["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container("api")["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # One that waits for its index is up.
    assert "livenessProbe" not in container("worker")


def test_the_check_of_a_worker_is_the_one_of_the_compose_file(services) -> None:
    check = services["worker"]["healthcheck"]["test"]
    assert container("worker")["readinessProbe"]["exec"]["command"] == check[1:]


def test_services_and_budgets_find_their_pods() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}

    def found(selector: dict[str, str]) -> set[str]:
        return {name for name, own in labels.items() if selector.items() <= own.items()}

    for name, service in of_kind("Service").items():
        pod = name.removesuffix("-each")
        assert found(service["spec"]["selector"]) == {pod}
        for port in service["spec"]["ports"]:
            known = ports(pod)
            assert port.get("targetPort", port["port"]) in {*known, *known.values()}
    for name, budget in of_kind("PodDisruptionBudget").items():
        assert found(budget["spec"]["selector"]["matchLabels"]) == {name}
    for name, one in of_kind("Deployment", "StatefulSet").items():
        assert one["spec"]["selector"]["matchLabels"] == labels[name]
    (ingress,) = of_kind("Ingress").values()
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    backend = path["backend"]["service"]
    assert backend["port"]["name"] in {
        one["name"] for one in of_kind("Service")[backend["name"]]["spec"]["ports"]
    }
    (tls,) = ingress["spec"]["tls"]
    assert tls["hosts"] == [ingress["spec"]["rules"][0]["host"]]
    settings = ServerSettings()
    size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert settings.max_upload_bytes < int(size.removesuffix("m")) * 1024**2


def test_prometheus_finds_each_replica() -> None:
    text = (DOCKER / "prometheus" / "prometheus.yml").read_text()
    offered = re.search(r"# dns_sd_configs:\n\s+#   - (.+)", text)
    assert offered is not None
    (name,) = yaml.safe_load(offered[1])["names"]
    service, namespace, kind = name.split(".")
    assert kind == "svc"
    found = of_kind("Service")[service]
    assert found["metadata"]["namespace"] == namespace
    assert found["spec"]["clusterIP"] == "None", "one address for all would hide all but one"
    assert yaml.safe_load(offered[1])["port"] == found["spec"]["ports"][0]["port"]


def test_addresses_of_nodes_are_names_that_the_cluster_gives_them() -> None:
    sets = of_kind("StatefulSet")["qdrant"]["spec"]
    service = of_kind("Service")[sets["serviceName"]]
    assert service["spec"]["clusterIP"] == "None"
    named = json.loads(environment("api")["PRECEDENT_STORE__URLS"])
    assert named == [
        f"http://qdrant-{n}.{sets['serviceName']}:6333" for n in range(sets["replicas"])
    ]
    script = container("qdrant")["command"][2]
    assert '--uri "http://$HOSTNAME.qdrant:6335"' in script
    assert environment("api")["PRECEDENT_STORE__SHARDS"] == str(sets["replicas"])


def allowed(policies: dict[str, dict[str, Any]], name: str, way: str) -> list[dict[str, Any]]:
    """The rules of the policies that hold for a pod."""
    labels = PODS[name]["metadata"]["labels"]
    rules = []
    for policy in policies.values():
        selector = policy["spec"]["podSelector"]
        matches = selector.get("matchLabels", {}).items() <= labels.items() and all(
            labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])
        )
        if matches:
            rules += policy["spec"].get(way, [])
    return rules


def test_only_who_has_to_reaches_the_databases_and_the_service() -> None:
    policies = of_kind("NetworkPolicy")
    assert policies["nobody"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for database, port in (
        ("qdrant", 6333),
        ("qdrant", 6334),
        ("postgres", 5432),
        ("valkey", 6379),
    ):
        rules = allowed(policies, database, "ingress")
        (ours,) = [
            rule
            for rule in rules
            if port in {one["port"] for one in rule["ports"]}
            and rule["from"] == [{"podSelector": {"matchLabels": {"app": "precedent"}}}]
        ]
        assert ours
        assert not any("from" not in rule for rule in rules)
        out = [
            rule
            for rule in allowed(policies, "worker", "egress")
            if {"podSelector": {"matchLabels": {"app": database}}} in rule.get("to", [])
        ]
        assert port in {one["port"] for rule in out for one in rule["ports"]}
    (to_api,) = allowed(policies, "api", "ingress")
    (namespaces,) = to_api["from"]
    assert namespaces["namespaceSelector"]["matchExpressions"][0]["values"] == [
        "ingress-nginx",
        "monitoring",
    ]
    assert allowed(policies, "worker", "ingress") == []
    # PostgreSQL and Valkey reach nothing but the names.
    for name in ("postgres", "valkey"):
        assert allowed(policies, name, "egress") == policies["names"]["spec"]["egress"]


def test_workers_are_scaled_by_a_figure_that_the_service_gives(tmp_path: Path) -> None:
    (scaler,) = of_kind("HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    assert target["name"] in of_kind(target["kind"])
    (metric,) = scaler["spec"]["metrics"]
    adapter = yaml.safe_load((DOCKER / "prometheus" / "adapter.yaml").read_text())
    (rule,) = adapter["rules"]["external"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    rules = yaml.safe_load((DOCKER / "prometheus" / "precedent.rules.yml").read_text())
    recorded = {
        one["record"]: one["expr"]
        for group in rules["groups"]
        for one in group["rules"]
        if "record" in one
    }
    assert rule["metricsQuery"] == f"max({rule['seriesQuery']})"
    named = set(re.findall(r"precedent_\w+", recorded[rule["seriesQuery"]]))
    assert named == {"precedent_job_queue"}
    with Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as empty:
        figures = ArchiveFigures(Settings(data_dir=tmp_path), lambda: empty)
        told = {one.name for one in figures.collect()}
    assert named <= told


def test_nodes_have_what_the_plan_says_for_ten_million_images(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["plan", "--images", "10M", "--replicas", "2", "--store", "server", "--json"]
    planned = json.loads(CliRunner().invoke(app, asked).stdout)
    sets = of_kind("StatefulSet")["qdrant"]["spec"]
    assert planned["nodes"] == sets["replicas"]
    memory = in_bytes(container("qdrant")["resources"]["limits"]["memory"])
    assert planned["fast_memory_bytes"] / sets["replicas"] <= memory
    storage, snapshots = sets["volumeClaimTemplates"]
    for claim in (storage, snapshots):
        size = in_bytes(claim["spec"]["resources"]["requests"]["storage"])
        assert planned["disk_bytes"] / sets["replicas"] <= size

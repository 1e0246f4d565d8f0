"""docker/Dockerfile: two images that run as nobody in particular, from files that are there."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field

import pytest
from deployed import DOCKER, ROOT, answering, check_command, compose
from services.node import installed

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = ("cpu", "cuda")


@dataclass
class Stage:
    """One FROM and what follows. Instructions of the stage it builds on come first."""

    name: str
    base: str
    own: list[tuple[str, str]] = field(default_factory=list)
    inherited: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        given = [rest for name, rest in self.inherited + self.own if name == instruction]
        assert given, f"{self.name} has no {instruction}"
        return given[-1]

    @property
    def environment(self) -> dict[str, str]:
        words = [rest for name, rest in self.inherited + self.own if name == "ENV"]
        return dict(word.split("=", 1) for rest in words for word in rest.split())


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    text = (DOCKER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", "")
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, whole.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            inherited = found[base].inherited + found[base].own if base in found else []
            stage = found[name] = Stage(name, base, inherited=inherited)
        elif instruction != "ARG" or found:
            stage.own.append((instruction, rest.strip()))
    return found


def test_compose_builds_stages_that_are_there(stages):
    assert set(TARGETS) <= set(stages)
    for file in ("compose.yaml", "compose.gpu.yaml"):
        for service in compose(file)["services"].values():
            if "build" in service:
                assert service["build"]["target"] in TARGETS


def test_the_base_is_pinned_to_a_python_that_will_do():
    image = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.M)
    version = re.match(r"python:(\d+)\.(\d+)\.(\d+)-slim-\w+$", image[1])
    assert version, image[1]
    assert PROJECT["requires-python"] == ">=3.11"
    assert (int(version[1]), int(version[2])) >= (3, 11)


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_user_without_rights_who_owns_the_data(stages, target):
    stage = stages[target]
    user = stage.last("USER")
    assert re.match(r"[1-9]\d{3,}:[1-9]\d{3,}$", user), "Kubernetes only trusts numbers"
    made = next(rest for name, rest in stages["runtime"].own if name == "RUN")
    uid, _, gid = user.partition(":")
    data = stage.environment["PRECEDENT_DATA_DIR"]
    assert f"--owner {uid} --group {gid} --mode 0750 {data}" in " ".join(made.split())
    assert json.loads(stage.last("VOLUME")) == [data]


@pytest.mark.parametrize("target", TARGETS)
def test_it_serves_unless_told_otherwise(stages, target):
    stage = stages[target]
    entry = json.loads(stage.last("ENTRYPOINT"))
    assert entry == ["tini", "--", "precedent"]
    check_command(json.loads(stage.last("CMD")))
    assert stage.environment["PRECEDENT_SERVER__HOST"] == "0.0.0.0"
    assert stage.environment["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_fetched_or_built_in_the_final_stage(stages, target):
    copied = [rest for name, rest in stages[target].own if name != "ENV"]
    assert copied == [f"--from=packages-{target} /opt/precedent /opt/precedent"]


def test_what_is_copied_is_there_and_reaches_the_builder(stages):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied: set[str] = set()
    for stage in stages.values():
        for name, rest in stage.own:
            if name == "COPY" and "--from" not in rest:
                copied |= set(rest.split()[:-1])
    assert copied == kept
    for path in copied:
        assert (ROOT / path).exists(), path


def test_what_the_wheel_needs_is_copied(stages):
    copied = {w for name, rest in stages["wheel"].own if name == "COPY" for w in rest.split()}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    needed = {*build["build"]["targets"]["wheel"]["packages"], PROJECT["readme"], "pyproject.toml"}
    needed |= set(PROJECT["license-files"])
    assert needed <= copied


def test_extras_are_those_of_the_project():
    named = re.findall(r'"\$1\[([\w,]+)\]"', (DOCKER / "Dockerfile").read_text())
    assert len(named) == len(TARGETS)
    for extras in named:
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_pytorch_is_the_version_that_the_project_asks_for(stages):
    command = next(rest for name, rest in stages["wheel"].own if "tomllib" in rest)
    program = re.search(r'python -c "(.*)"', command)[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (asked,) = (one for one in PROJECT["dependencies"] if re.match(r"torch\b", one))
    assert done.stdout.splitlines() == [asked, "torchvision"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_is_what_the_server_says(stages, target, status, healthy):
    options, _, command = stages[target].last("HEALTHCHECK").partition("CMD ")
    assert "--interval=" in options
    assert "--start-period=" in options
    program, *arguments = json.loads(command)
    assert program == "python"
    with answering("/healthz", status) as port:
        words = [word.replace(":8000/", f":{port}/") for word in arguments]
        done = subprocess.run([sys.executable, *words], capture_output=True, timeout=30)
    assert (done.returncode == 0) is healthy


def linted(text: str) -> list[str]:
    """What dockerfile-utils, of npm, finds wrong with a Dockerfile, each with its line."""
    folder = ROOT / "tests" / "services" / "dockerfile"
    done = subprocess.run(
        [installed(folder), "lint.js"], cwd=folder, input=text, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def test_it_follows_the_language_of_dockerfiles():
    text = (DOCKER / "Dockerfile").read_text()
    assert linted(text) == []
    (wrong,) = linted(text.replace("EXPOSE 8000 11112", "EXPOSE 8000 dicom"))
    assert "dicom" in wrong


def test_packages_are_pinned_and_what_installing_leaves_behind_is_removed(stages):
    commands = [" ".join(rest.split()) for stage in stages.values() for n, rest in stage.own]
    runs = [one for one in commands if "apt-get install" in one]
    assert runs
    for run in runs:
        assert "--no-install-recommends" in run
        assert "rm -rf /var/lib/apt/lists/*" in run
        names = re.search(r"apt-get install ((?:--?[\w-]+ )*)([^&]+)&&", run)
        assert names is not None
        assert all("=" in name for name in names[2].split()), "a version for each"
    assert not any(re.search(r"\b(sudo|curl|wget)\b|chmod 777", one) for one in commands)
    used = {name for stage in stages.values() for name, _ in stage.own}
    assert not used & {"ADD", "MAINTAINER", "SHELL", "ONBUILD"}
    for stage in stages.values():
        for name in stage.environment:
            assert not re.search("(PASSWORD|KEY|TOKEN|SECRET)$", name)
        for where in (rest for name, rest in stage.own if name == "WORKDIR"):
            assert where.startswith("/")

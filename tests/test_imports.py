"""How modules import each other, and what commands load before they have to."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import typer

from api.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "indexer", "api", "bench")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a module imports, inside functions too; for types alone: none."""
    tree = parsed(known[name])
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            if node.level:
                # It has another name in the wheel of its own.
                assert name.startswith("api.client"), f"{name}: imports are absolute here"
                assert node.level == 1
                module = "api.client" if node.module is None else f"api.client.{node.module}"
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                if inner in known or module in known:
                    yield inner if inner in known else module


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    graph = {name: {*imports(name, known)} - {name} for name in known}
    assert graph["indexer.archive"] >= {"indexer.pipeline.indexing", "engine.search.engine"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' → '.join(error.args[1])}")


def test_what_a_circle_would_look_like(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("def f():\n    from b.other import g\n    return g\n")
    other.write_text("import typing\nif typing.TYPE_CHECKING:\n    import x\nfrom b import one\n")
    known = {"b.one": one, "b.other": other}
    graph = {name: {*imports(name, known)} for name in known}
    assert graph == {"b.one": {"b.other"}, "b.other": {"b.one"}}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of an archive with a few pictures."""
    from PIL import Image

    root = tmp_path_factory.mktemp("small")
    Image.linear_gradient("L").save(root / "image.png")
    # In this process, which has loaded by now what a process of its own would load first.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRECEDENT_INDEXING__READERS", "1")
        command = ["index", str(root / "image.png"), "--data-dir", str(root / "d")]
        app(command, standalone_mode=False)
    return root / "d"


HEAVY = {"torch", "open_clip", "timm", "torchvision"}
TOLD = """
import sys
from api.cli.main import main
sys.argv = ["precedent", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", *{name.partition(".")[0] for name in sys.modules})
"""


@pytest.mark.parametrize(
    ("arguments", "also_not"),
    [
        (("--help",), {"numpy", "sqlalchemy", "pydantic"}),
        (("--version",), {"numpy", "sqlalchemy"}),
        (("info",), {"pydicom", "PIL"}),
        (("info", "--json", "--refusals"), {"pydicom", "PIL"}),
        (("jobs", "list"), {"pydicom", "PIL"}),
        (("plan", "--images", "50M"), {"numpy", "sqlalchemy"}),
        (("profile",), {"pydicom", "PIL"}),
        (("settings",), {"numpy", "sqlalchemy", "pydicom"}),
        (("doctor",), {"celery"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_loads_what_it_needs(
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    also_not: set[str],
) -> None:
    monkeypatch.setenv("PRECEDENT_DATA_DIR", str(data_dir))
    command = [sys.executable, "-c", TOLD, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    output, _, loaded = ran.stdout.rpartition("loaded:")
    assert output.strip()
    assert "typer" in loaded.split()
    assert not (HEAVY | also_not) & {*loaded.split()}


def test_help_of_a_command_loads_no_model() -> None:
    script = (
        "import sys, typer; from api.cli.main import COMMANDS, app\n"
        "group = typer.main.get_command(app)\n"
        "helps = [group.get_command(None, name).help for name in COMMANDS]\n"
        "assert all(helps), helps\n"
        "print('torch' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_command_says(name: str) -> None:
    command: Any = typer.main.get_command(app)
    _, summary = COMMANDS[name]
    assert command.get_command(None, name).help.split()[0] == summary.split()[0]
    assert summary.endswith(".")


@functools.cache
def exported(path: Path) -> set[str] | None:
    """The names in a module's ``__all__``; None when it has none."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {str(name) for name in ast.literal_eval(node.value)}
    return None


def test_what_other_modules_import_is_exported() -> None:
    known = modules()
    missing = set()
    for name, path in known.items():
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ImportFrom) or node.module not in known:
                continue
            public = exported(known[node.module])
            for alias in node.names:
                is_module = f"{node.module}.{alias.name}" in known
                if public is not None and not is_module and alias.name not in public:
                    missing.add(f"{node.module}: {alias.name} (used by {name})")
    assert not missing, "\n".join(sorted(missing))


def test_a_command_that_is_misspelt_is_answered_with_the_one_that_was_meant() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "api", "serach"], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 2
    assert "Did you mean 'search'?" in ran.stderr

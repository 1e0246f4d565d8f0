"""Lays out the Python client as a project of its own, of which pip makes a wheel.

    python -m bench.client_package build/client
    python -m pip wheel --no-deps --wheel-dir dist build/client

`make client` does both. ``api/client`` is called ``precedent_client`` there, and has the version of
the project; nothing else of the project comes with it.
"""

import argparse
import shutil
import tomllib
from pathlib import Path

import engine

__all__ = ["lay_out"]

_ROOT = Path(__file__).parents[1]
_PAGE = _ROOT / "docs" / "clients.md"
_TYPED = "py.typed"
_PROJECT = """\
[build-system]
requires = {build}
build-backend = "hatchling.build"

[project]
name = "precedent-imaging-client"
version = "{version}"
description = "A typed Python client of Precedent, similar-image search for medical image archives"
readme = "README.md"
requires-python = "{python}"
license = "Apache-2.0"
license-files = ["LICENSE"]
dependencies = ["httpx>=0.27,<1", "pydantic>=2.11,<3"]

[tool.hatch.build.targets.wheel]
packages = ["precedent_client"]
"""


def lay_out(folder: Path) -> None:
    """Writes the project into an empty folder, or one that this has written before.

    Raises:
        FileExistsError: the folder has something else in it.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "precedent_client" / _TYPED).exists():
            raise FileExistsError(f"{folder} has other things in it; name an empty folder")
        shutil.rmtree(folder)
    package = folder / "precedent_client"
    package.mkdir(parents=True)
    for module in (_ROOT / "api" / "client").glob("*.py"):
        shutil.copyfile(module, package / module.name)
    (package / _TYPED).touch()
    shutil.copyfile(_ROOT / "LICENSE", folder / "LICENSE")
    shutil.copyfile(_PAGE, folder / "README.md")
    whole = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    project = _PROJECT.format(
        build=whole["build-system"]["requires"],
        version=engine.__version__,
        python=whole["project"]["requires-python"],
    )
    (folder / "pyproject.toml").write_text(project)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    lay_out(parser.parse_args().folder)


if __name__ == "__main__":
    main()

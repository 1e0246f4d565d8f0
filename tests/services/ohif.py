"""The real OHIF viewer, of npm, behind a real nginx as docs/integration.md has it configured."""

import hashlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen

from filelock import FileLock

from services.needed import package, program
from services.server import HOST, Server

__all__ = ["Ohif"]

VERSION = "3.13.2"
SHA512 = (
    "5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3dee"
    "a3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10"
)
"""Of the package, hex."""
_FOLDER = Path(__file__).parent / "ohif_app"
_PAGE = Path(__file__).parents[2] / "docs" / "integration.md"
_PANEL = _PAGE.parent / "examples" / "ohif-related.js"
_SURROUNDING = """
master_process off;
daemon off;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    include /etc/nginx/mime.types;
    log_format asked '$status $request_method $request_uri $sent_http_content_type';
    access_log {folder}/asked.log asked;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server}
}}
"""


class Ohif(Server):
    """A viewer; what `before` gives is a context manager.

    Args:
        pacs: address of the DICOMweb server, as in "127.0.0.1:8042".
        key: what our service is asked with.
    """

    name = "ohif"
    stop_seconds = 20.0

    def __init__(self, pacs: str, key: str) -> None:
        self._binary = package("nginx")
        viewer = _installed()
        super().__init__()
        # What is there is not changed: another run may use it as well.
        root = self.folder / "viewer"
        shutil.copytree(viewer, root, copy_function=_linked)
        (root / "app-config.js").unlink(missing_ok=True)
        shutil.copy(_PANEL, root)
        header = self.folder / "precedent-key.conf"
        header.write_text(f'proxy_set_header Authorization "Bearer {key}";\n')
        self._changed = {
            "listen 443 ssl;": f"listen {HOST}:{self.port};",
            "server_name viewer.example;": "server_name localhost;",
            "    ssl_certificate /etc/nginx/viewer.crt;\n": "",
            "    ssl_certificate_key /etc/nginx/viewer.key;\n": "",
            "/usr/share/ohif": str(root),
            "http://127.0.0.1:8042": f"http://{pacs}",
            "/etc/nginx/precedent-key.conf": str(header),
            "https://viewer.example": f"http://localhost:{self.port}",
        }
        self._root = root
        self.url = f"http://{HOST}:{self.port}"
        # Under this name it is another site than the service.
        self.elsewhere = f"http://localhost:{self.port}"

    def before(self, service: str) -> Self:
        """The viewer, to be entered. service: address of ours, as in "127.0.0.1:8000"."""
        server = _block("nginx")
        changed = {**self._changed, "http://127.0.0.1:8000": f"http://{service}"}
        for of_the_page, here in changed.items():
            assert of_the_page in server, of_the_page
            server = server.replace(of_the_page, here)
        config = _block("javascript")
        assert "https://precedent.example" in config
        config = config.replace("https://precedent.example", f"http://{service}")
        (self._root / "app-config.js").write_text(config)
        configuration = _SURROUNDING.format(server=server, folder=self.folder)
        (self.folder / "nginx.conf").write_text(configuration)
        return self

    @property
    def asked(self) -> list[str]:
        """Status, method, address and type of each answer so far."""
        return (self.folder / "asked.log").read_text().splitlines()

    def _command(self) -> Sequence[str | Path]:
        return [self._binary, "-e", "stderr", "-p", self.folder, "-c", "nginx.conf"]

    def _answers(self) -> bool:
        try:
            urlopen(self.url, timeout=1).close()
        except HTTPError:
            return True
        except OSError:
            return False
        return True


def _block(language: str) -> str:
    """What the page has in this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    return str(found)


def _linked(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def _installed() -> Path:
    """The folder of the viewer's pages, fetched from npm once."""
    npm = program("npm", "npm")
    folder = _FOLDER / VERSION
    _FOLDER.mkdir(exist_ok=True)
    with FileLock(_FOLDER / ".lock", timeout=600):
        if not folder.is_dir():
            part = _FOLDER / "part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            subprocess.run(
                [npm, "pack", f"@ohif/app@{VERSION}", "--pack-destination", part],
                cwd=part,
                check=True,
                capture_output=True,
                timeout=540,
            )
            (packed,) = part.glob("*.tgz")
            assert hashlib.sha512(packed.read_bytes()).hexdigest() == SHA512
            with tarfile.open(packed) as content:
                pages = [
                    one for one in content.getmembers() if one.name.startswith("package/dist/")
                ]
                content.extractall(part, pages, filter="data")
            (part / "package" / "dist").rename(folder)
            shutil.rmtree(part)
    return folder

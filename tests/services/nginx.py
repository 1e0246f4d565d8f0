"""A real nginx that hands requests on over TLS, as docs/security.md has it configured."""

import re
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from services.needed import package, program
from services.server import HOST, Server

__all__ = ["Nginx", "self_signed"]

_PAGE = Path(__file__).parents[2] / "docs" / "security.md"
_SURROUNDING = """
master_process off;
daemon off;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server}
}}
"""


def self_signed(openssl: str | Path, key: Path, certificate: Path) -> None:
    """Writes a key and a certificate of localhost, for a day."""
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )


class Nginx(Server):
    """A proxy with a certificate of its own: use it as a context manager.

    Args:
        backend: address of the service, as in "127.0.0.1:8000".
    """

    name = "nginx"
    stop_seconds = 20.0

    def __init__(self, backend: str) -> None:
        self._binary = package("nginx")
        openssl = program("openssl", "openssl")
        super().__init__()
        key, certificate = self.folder / "precedent.key", self.folder / "precedent.crt"
        self_signed(openssl, key, certificate)
        found = re.search(r"```nginx\n(.*?)```", _PAGE.read_text(), re.DOTALL)
        assert found is not None
        changed = {
            "listen 443 ssl;": f"listen {HOST}:{self.port} ssl;",
            "server_name precedent.example;": "server_name localhost;",
            "/etc/nginx/precedent.crt": str(certificate),
            "/etc/nginx/precedent.key": str(key),
            "http://127.0.0.1:8000": f"http://{backend}",
        }
        server = found[1]
        for of_the_page, here in changed.items():
            assert of_the_page in server
            server = server.replace(of_the_page, here)
        (self.folder / "nginx.conf").write_text(_SURROUNDING.format(server=server))
        self.url = f"https://localhost:{self.port}"
        self.trust = ssl.create_default_context(cafile=certificate)

    def _command(self) -> Sequence[str | Path]:
        return [self._binary, "-e", "stderr", "-p", self.folder, "-c", "nginx.conf"]

    def _answers(self) -> bool:
        try:
            urlopen(self.url, context=self.trust, timeout=1).close()
        except HTTPError:
            return True
        except OSError:
            return False
        return True

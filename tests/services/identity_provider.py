"""A real identity provider, node-oidc-provider, which is certified for OpenID Connect.

npm installs it beside its package.json, once, in the versions that are locked there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import RSAAlgorithm

from services.node import installed
from services.server import HOST, Server

__all__ = ["AUDIENCE", "OTHER_AUDIENCE", "IdentityProvider", "SigningKey"]

_FOLDER = Path(__file__).parent / "oidc"
AUDIENCE = "https://precedent.example/api"
OTHER_AUDIENCE = "https://other.example/api"


@dataclass(frozen=True)
class SigningKey:
    """A private key of the provider's. id: its kid."""

    id: str
    private: RSAPrivateKey = field(default_factory=lambda: generate_private_key(65537, 2048))

    @property
    def jwk(self) -> dict[str, Any]:
        made: dict[str, Any] = RSAAlgorithm.to_jwk(self.private, as_dict=True)
        return {**made, "kid": self.id, "use": "sig", "alg": "RS256"}

    def signed(self, claims: Mapping[str, Any], **header: Any) -> str:
        """A token with these claims, signed by this key."""
        return jwt.encode(dict(claims), self.private, "RS256", headers={"kid": self.id, **header})


class IdentityProvider(Server):
    """The provider: use it as a context manager.

    Args:
        programs: claims of what gets tokens by its own secret, by client id.
        people: claims of those who sign in, by name.
        page: address of the page that they sign in to; None = there is none.
        lifetimes: seconds that access tokens last, by audience.
        smart: what it is as an EHR, with its FHIR server below ``/fhir``: ``launches`` has the
            context of each launch by its name, ``studies`` Study Instance UIDs by the ids of their
            ImagingStudy; None = it is none.
    """

    name = "node-oidc-provider"

    def __init__(
        self,
        programs: Mapping[str, Mapping[str, Any]],
        people: Mapping[str, Mapping[str, Any]] | None = None,
        page: str | None = None,
        lifetimes: Mapping[str, int] | None = None,
        smart: Mapping[str, Any] | None = None,
    ) -> None:
        self._node = installed(_FOLDER)
        super().__init__()
        self.issuer = f"http://{HOST}:{self.port}"
        self.key = SigningKey("first")
        self._told = {
            "issuer": self.issuer,
            "port": self.port,
            "algorithm": "RS256",
            "programs": programs,
            "people": people or {},
            "lifetimes": lifetimes or {},
            "smart": smart,
            "clients": [_program(name) for name in programs]
            + ([] if page is None else [_page(page)]),
        }

    def rotate(self, name: str) -> SigningKey:
        """Starts it again with another key, and no other."""
        self.stop()
        self.key = SigningKey(name)
        self.start()
        return self.key

    def token(self, program: str, audience: str = AUDIENCE) -> str:
        """An access token for a program."""
        form = f"grant_type=client_credentials&resource={audience}&client_id={program}"
        form += f"&client_secret={_secret(program)}"
        with urlopen(f"{self.issuer}/token", form.encode(), timeout=30) as answer:
            return str(json.load(answer)["access_token"])

    @property
    def page_secret(self) -> str:
        """Of the page that people sign in to."""
        return _secret("page")

    def _command(self) -> Sequence[str | Path]:
        told = self.folder / "told.json"
        told.write_text(json.dumps({**self._told, "jwks": {"keys": [self.key.jwk]}}))
        return [self._node, _FOLDER / "provider.js", told]

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.issuer}/.well-known/openid-configuration", timeout=1).close()
        except HTTPError:
            return True
        except OSError:
            return False
        return True


def _secret(client: str) -> str:
    return f"of-{client}-in-tests-alone"


def _program(name: str) -> dict[str, Any]:
    return {
        "client_id": name,
        "client_secret": _secret(name),
        "grant_types": ["client_credentials"],
        "redirect_uris": [],
        "response_types": [],
        "token_endpoint_auth_method": "client_secret_post",
    }


def _page(address: str) -> dict[str, Any]:
    return {
        "client_id": "page",
        "client_secret": _secret("page"),
        "redirect_uris": [f"{address}/login/oidc/callback", f"{address}/smart/callback"],
    }

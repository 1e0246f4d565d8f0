"""What an EHR says of itself, below its FHIR server's address (SMART App Launch 2.2, 3.2)."""

from api.security.oidc.outbound import Outbound
from api.security.oidc.provider import Configuration
from engine.errors import ProviderUnavailable

__all__ = ["smart_configuration"]

_USUAL = ("client_secret_basic",)


def smart_configuration(issuer: str, outbound: Outbound) -> Configuration:
    """The configuration of the EHR with this FHIR server. Raises ProviderUnavailable."""
    found = outbound.get(issuer.rstrip("/") + "/.well-known/smart-configuration")
    named = found.get("issuer")
    if not isinstance(named, str) or not named:
        raise ProviderUnavailable(
            f"{issuer} does not say which issuer its ID tokens have; it has to support "
            "sso-openid-connect"
        )
    challenges = found.get("code_challenge_methods_supported", ["S256"])
    if not isinstance(challenges, list) or "S256" not in challenges:
        raise ProviderUnavailable(f"{issuer} takes no code challenge S256 (PKCE)")
    methods = found.get("token_endpoint_auth_methods_supported", _USUAL)
    return Configuration(
        named,
        outbound.checked(found.get("jwks_uri")),
        outbound.checked(found.get("authorization_endpoint")),
        outbound.checked(found.get("token_endpoint")),
        None,
        found.get("authorization_response_iss_parameter_supported") is True,
        "client_secret_basic" not in (methods if isinstance(methods, list) else _USUAL),
    )

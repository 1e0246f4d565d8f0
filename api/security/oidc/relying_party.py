"""The service as one that relies on an identity provider: for tokens, and for the page."""

from api.security.oidc.code_flow import CodeFlow, Started
from api.security.oidc.identity import Identity, identity_of
from api.security.oidc.outbound import Outbound
from api.security.oidc.provider import Provider
from api.security.oidc.tokens import access_token_claims
from engine.errors import NotAllowed, SettingsError
from engine.oidc_settings import OidcSettings

__all__ = ["RelyingParty"]


class RelyingParty:
    """Tells people by the identity provider of the settings. Close it.

    The provider is not asked before somebody is to be told by it, so a service starts without it.

    Args:
        settings: with an issuer.

    Raises:
        SettingsError: the client's secret or the certificates cannot be read.
    """

    def __init__(self, settings: OidcSettings) -> None:
        try:
            secret = settings.secret()
        except ValueError as error:
            raise SettingsError(str(error)) from None
        self._settings = settings
        self.issuer = settings.issuer or ""
        self._outbound = Outbound(settings)
        self._provider = Provider(settings, self._outbound)
        self._flow = CodeFlow(settings, self._provider, self._outbound, secret)

    def close(self) -> None:
        self._outbound.close()

    @property
    def button(self) -> str | None:
        """What the page calls the provider; None = nobody signs in to the page by it."""
        return None if self._settings.client_id is None else self._settings.name

    @property
    def sign_out_url(self) -> str | None:
        """Where somebody ends their session with the provider too; None = it has no such page, or
        was not asked yet."""
        known = self._provider.known_configuration
        return None if known is None else known.end_session

    def by_token(self, token: str) -> Identity:
        """Whose access token it is.

        Raises:
            NotAuthenticated: it is not valid.
            NotAllowed: it gives no scope, or no tenant.
            ProviderUnavailable: nobody can tell.
        """
        claims = access_token_claims(token, self._settings, self._provider)
        return identity_of(claims, self._settings)

    def start(self) -> Started:
        """Begins to sign somebody in to the page.

        Raises:
            NotAllowed: the page is not registered with the provider.
            ProviderUnavailable: the provider does not answer.
        """
        if self._settings.client_id is None:
            raise NotAllowed(
                "nobody signs in to this page by an identity provider; send an API key"
            )
        return self._flow.start()

    def finish(self, cookie: str | None, answer: dict[str, str]) -> Identity:
        """Who has signed in. Arguments and errors as for :meth:`CodeFlow.finish`.

        Raises:
            NotAllowed: they may do nothing here.
        """
        if self._settings.client_id is None:
            raise NotAllowed(
                "nobody signs in to this page by an identity provider; send an API key"
            )
        return identity_of(self._flow.finish(cookie, answer), self._settings)

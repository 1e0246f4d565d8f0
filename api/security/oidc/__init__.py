"""OpenID Connect: tokens of an identity provider, and signing in to the page by it."""

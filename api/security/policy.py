"""What each route asks of whoever calls it. A route that is not in :data:`POLICY` is not served."""

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["OPENED", "PAGES", "POLICY", "PUBLIC", "SIGNS_IN", "Scope"]


class Scope(StrEnum):
    """What a key allows: to search, to index and delete, to administer, to read the audit log, to
    read figures of the service as a whole, to have documents that name patients, and send them."""

    SEARCH = "search"
    INDEX = "index"
    ADMIN = "admin"
    AUDIT = "audit"
    METRICS = "metrics"
    SEND = "send"


PUBLIC = None
"""Of routes that tell nothing of any image without what their own forms carry: they ask for no
key."""

POLICY: Mapping[tuple[str, str], Scope | None] = {
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/livez"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    ("GET", "/static/{path:path}"): PUBLIC,
    ("GET", "/login"): PUBLIC,
    ("POST", "/login"): PUBLIC,
    ("GET", "/login/oidc"): PUBLIC,
    ("GET", "/login/oidc/callback"): PUBLIC,
    ("GET", "/smart/launch"): PUBLIC,
    ("GET", "/smart/callback"): PUBLIC,
    ("POST", "/logout"): PUBLIC,
    ("GET", "/embed"): PUBLIC,
    ("POST", "/embed"): PUBLIC,
    ("GET", "/"): Scope.SEARCH,
    ("POST", "/"): Scope.SEARCH,
    ("GET", "/studies/{uid}"): Scope.SEARCH,
    ("GET", "/images/{id}"): Scope.SEARCH,
    ("GET", "/compare"): Scope.SEARCH,
    ("GET", "/region"): Scope.SEARCH,
    ("GET", "/collection"): Scope.SEARCH,
    ("POST", "/collection"): Scope.SEND,
    ("GET", "/archive"): Scope.SEARCH,
    ("GET", "/archive/duplicates"): Scope.SEARCH,
    ("GET", "/model"): Scope.SEARCH,
    ("GET", "/jobs"): Scope.INDEX,
    ("POST", "/jobs"): Scope.INDEX,
    ("POST", "/documents"): Scope.SEND,
    ("GET", "/keys"): Scope.ADMIN,
    ("POST", "/keys"): Scope.ADMIN,
    ("GET", "/audit"): Scope.AUDIT,
    ("POST", "/audit"): Scope.AUDIT,
    ("POST", "/v1/search"): Scope.SEARCH,
    ("POST", "/v1/recommend"): Scope.SEARCH,
    ("GET", "/v1/studies/{uid}/related"): Scope.SEARCH,
    ("GET", "/fhir/ImagingStudy/{uid}"): Scope.SEARCH,
    ("GET", "/dicomweb/related/{uid}/studies"): Scope.SEARCH,
    ("GET", "/dicomweb/related/{uid}/studies/{study}/series"): Scope.SEARCH,
    ("GET", "/dicomweb/studies"): Scope.SEARCH,
    ("GET", "/dicomweb/studies/{uid}/series"): Scope.SEARCH,
    ("GET", "/cds-services"): Scope.SEARCH,
    ("POST", "/cds-services/related-studies"): Scope.SEARCH,
    ("GET", "/v1/images/{id}"): Scope.SEARCH,
    ("GET", "/v1/images/{id}/thumbnail"): Scope.SEARCH,
    ("GET", "/v1/images/{id}/preview"): Scope.SEARCH,
    ("GET", "/v1/facets"): Scope.SEARCH,
    ("POST", "/v1/search/batch"): Scope.SEARCH,
    ("POST", "/v1/search/upload"): Scope.SEARCH,
    ("POST", "/v1/recommend/upload"): Scope.SEARCH,
    ("POST", "/v1/recommend/series"): Scope.SEARCH,
    ("GET", "/v1/duplicates"): Scope.SEARCH,
    ("GET", "/v1/model"): Scope.SEARCH,
    ("GET", "/v1/model/calibration"): Scope.SEARCH,
    ("GET", "/v1/model/drift"): Scope.SEARCH,
    ("GET", "/v1/archive/map"): Scope.SEARCH,
    ("GET", "/v1/archive/growth"): Scope.SEARCH,
    ("GET", "/v1/archive/refusals"): Scope.SEARCH,
    ("GET", "/v1/stats"): Scope.SEARCH,
    ("GET", "/v1/sources"): Scope.SEARCH,
    # Of any key, whatever its scopes; the route itself refuses whoever has none.
    ("GET", "/v1/whoami"): PUBLIC,
    ("GET", "/v1/jobs"): Scope.INDEX,
    ("GET", "/v1/jobs/{id}"): Scope.INDEX,
    ("GET", "/v1/jobs/{id}/report"): Scope.INDEX,
    ("GET", "/v1/jobs/{id}/events"): Scope.INDEX,
    ("POST", "/v1/jobs/{id}/pause"): Scope.INDEX,
    ("POST", "/v1/jobs/{id}/resume"): Scope.INDEX,
    ("POST", "/v1/jobs/{id}/cancel"): Scope.INDEX,
    ("POST", "/v1/jobs/{id}/retry"): Scope.INDEX,
    ("POST", "/v1/embed-tokens"): Scope.SEARCH,
    ("GET", "/metrics"): Scope.METRICS,
    ("POST", "/v1/instances"): Scope.INDEX,
    ("DELETE", "/v1/instances"): Scope.INDEX,
    ("POST", "/dicomweb/studies"): Scope.INDEX,
    ("POST", "/dicomweb/studies/{uid}"): Scope.INDEX,
    ("POST", "/v1/jobs"): Scope.INDEX,
    ("POST", "/v1/studies/{uid}/report"): Scope.SEND,
    ("POST", "/v1/studies/{uid}/key-objects"): Scope.SEND,
    ("POST", "/v1/key-objects"): Scope.SEND,
    ("GET", "/v1/destinations"): Scope.SEND,
    ("POST", "/v1/sendings"): Scope.SEND,
    ("GET", "/v1/sendings"): Scope.SEND,
    ("GET", "/v1/sendings/{id}"): Scope.SEND,
    ("POST", "/v1/sendings/{id}/retry"): Scope.SEND,
    ("POST", "/v1/sendings/{id}/cancel"): Scope.SEND,
    ("GET", "/v1/keys"): Scope.ADMIN,
    ("POST", "/v1/keys"): Scope.ADMIN,
    ("POST", "/v1/keys/{id}/revoke"): Scope.ADMIN,
    ("GET", "/v1/audit"): Scope.AUDIT,
    ("GET", "/v1/audit/export"): Scope.AUDIT,
    ("POST", "/v1/audit/verify"): Scope.AUDIT,
}
"""The scope that each method and path asks for; HEAD asks for what GET does."""

PAGES = ("/", "/login", "/logout", "/documents", "/collection", "/jobs", "/keys", "/audit")
"""Paths whose forms carry a token of the session. To all others a session may only send GET."""

OPENED = (
    *("/", "/studies/{uid}", "/images/{id}", "/compare", "/region", "/collection", "/jobs"),
    *("/archive", "/archive/duplicates", "/model", "/keys", "/audit"),
)
"""Pages that people open, also by a link from elsewhere: who is not known is asked to sign in."""

SIGNS_IN = frozenset({Scope.SEARCH, Scope.ADMIN, Scope.AUDIT})
"""Whoever has one of these may sign in to the pages. Those who look after keys or the audit log
need not be let see any image."""

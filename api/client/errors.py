"""All that a call may raise, in one tree.

ClientError
├── ServiceError            the service, or a proxy before it, answered with an error
│   ├── RequestRefused      400, 415, 422 …: the request is wrong
│   │   └── ImageRefused    413, 422: the image cannot be used; ``problem.code`` says why
│   ├── NotAuthenticated    401: no key, or one that does not hold
│   ├── NotAllowed          403: the key lacks the scope
│   ├── NotFound            404, 410: no such image, study or job, or not any more
│   ├── Conflict            409: what it is about does not allow this now
│   ├── TooManyRequests     429: the key asks too often
│   └── ServiceFailed       500 and above
│       └── ServiceUnavailable  503: busy, being ended, or something that it needs is missing
├── ConnectionFailed        no connection, or it broke
│   └── TimedOut            no answer in time
└── UnexpectedAnswer        an answer that is not as the service describes it
"""

from .answers import Problem

__all__ = [
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "ImageRefused",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "RequestRefused",
    "ServiceError",
    "ServiceFailed",
    "ServiceUnavailable",
    "TimedOut",
    "TooManyRequests",
    "UnexpectedAnswer",
    "service_error",
]

_REFUSED_IMAGE = "urn:precedent:problem:image-refused"


class ClientError(Exception):
    """A call that brought no answer. request_id: by which the service's log names it; None: there
    is none."""

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class ServiceError(ClientError):
    """An answer that is an error.

    problem: the RFC 9457 document; of an answer without one, what its status says. retry_after:
    seconds after which the service wants to be asked again; None: it does not say.
    """

    def __init__(
        self, problem: Problem, request_id: str | None = None, retry_after: float | None = None
    ) -> None:
        said = problem.detail or problem.title or "no reason is given"
        super().__init__(f"{problem.status} {problem.code}: {said}", request_id)
        self.problem = problem
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def code(self) -> str:
        return self.problem.code


class RequestRefused(ServiceError):
    pass


class ImageRefused(RequestRefused):
    pass


class NotAuthenticated(ServiceError):
    pass


class NotAllowed(ServiceError):
    pass


class NotFound(ServiceError):
    pass


class Conflict(ServiceError):
    pass


class TooManyRequests(ServiceError):
    pass


class ServiceFailed(ServiceError):
    pass


class ServiceUnavailable(ServiceFailed):
    pass


class ConnectionFailed(ClientError):
    pass


class TimedOut(ConnectionFailed):
    pass


class UnexpectedAnswer(ClientError):
    pass


_BY_STATUS: dict[int, type[ServiceError]] = {
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    429: TooManyRequests,
    503: ServiceUnavailable,
}


def service_error(
    problem: Problem, request_id: str | None, retry_after: float | None
) -> ServiceError:
    """The exception for an answer with this problem."""
    kind = _BY_STATUS.get(problem.status)
    if kind is None and problem.type == _REFUSED_IMAGE:
        kind = ImageRefused
    if kind is None:
        kind = ServiceFailed if problem.status >= 500 else RequestRefused
    return kind(problem, request_id, retry_after)

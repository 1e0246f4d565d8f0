"""Finds which route of the policy a path belongs to, before the application looks for it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.routing import compile_path
from starlette.types import Scope as AsgiScope

from api.security.policy import POLICY, Scope

__all__ = ["Address", "Addresses", "path_of"]


@dataclass(frozen=True, slots=True)
class Address:
    """A route. template: as the policy has it. methods: what each needs. named: by name, the parts
    of the path that the template leaves open."""

    template: str
    methods: Mapping[str, Scope | None]
    named: Mapping[str, str]


class Addresses:
    """The routes of :data:`POLICY`, to be found by path."""

    def __init__(self) -> None:
        routes: dict[str, dict[str, Scope | None]] = {}
        for (method, template), needed in POLICY.items():
            routes.setdefault(template, {})[method] = needed
        self._exact = {
            template: Address(template, methods, {})
            for template, methods in routes.items()
            if "{" not in template
        }
        self._routes: list[tuple[re.Pattern[str], str, Mapping[str, Scope | None]]] = [
            (compile_path(template)[0], template, methods)
            for template, methods in routes.items()
            if template not in self._exact
        ]

    def find(self, path: str) -> Address | None:
        """The route of this path; None = the policy has none."""
        if (found := self._exact.get(path)) is not None:
            return found
        for pattern, template, methods in self._routes:
            if match := pattern.match(path):
                return Address(template, methods, match.groupdict())
        return None


def path_of(scope: AsgiScope) -> str:
    """The path of a request, without that under which the application is mounted."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path

# SPDX-License-Identifier: Apache-2.0
"""What is left untold, by the options: requests, statements, aliases."""

from __future__ import annotations

import re
from functools import lru_cache

from .config import Config

Patterns = tuple[re.Pattern[str], ...]

#: Paths of health checks: Kubernetes' and Google's habit (healthz, livez, readyz), Prometheus' (-/healthy),
#: Mozilla's Dockerflow (__heartbeat__), django-health-check's (ht), Rails' (up).
HEALTH_CHECKS = (
    r"^/(_?health([-_]?checks?)?(/(live|liveness|ready|readiness|startup))?|(health|live|ready|startup)z|ht|up|ping"
    r"|-/(healthy|ready)|__(lb)?heartbeat__)/?$"
)


class Exclusions:
    """What the options of one ``instrument()`` leave untold."""

    __slots__ = ("_requests", "_statements", "aliases")
    _requests: Patterns
    _statements: Patterns

    def __init__(self, config: Config) -> None:
        health = (HEALTH_CHECKS,) if config.exclude_health_checks else ()
        self._requests = tuple(map(re.compile, (*health, *config.excluded_urls)))
        self._statements = tuple(map(re.compile, config.excluded_statements))
        self.aliases = frozenset(config.excluded_aliases)

    def request(self, path: str) -> bool:
        """Whether a request to this path is left untold."""
        return any(pattern.search(path) for pattern in self._requests)

    def statement(self, text: str) -> bool:
        """Whether a statement of this masked text is left untold."""
        return bool(self._statements) and _found(self._statements, text)


#: A text that was seen before is not searched again; texts have at most some thousand characters.
@lru_cache(maxsize=512)
def _found(patterns: Patterns, text: str) -> bool:
    return any(pattern.search(text) for pattern in patterns)

# SPDX-License-Identifier: Apache-2.0
"""Django's system checks of this package: what can be told wrong without a network.

Registered where ``otel_crdb`` is in ``INSTALLED_APPS``; ``otel-crdb doctor`` tells the same and more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning

from .doctor import static
from .doctor.findings import Finding

#: The identifiers, which never change, by the examination's own words for the same.
IDS = {
    "not-instrumented": "otel_crdb.W001",
    "instrumented-late": "otel_crdb.W002",
    "sdk-disabled": "otel_crdb.W003",
    "instrumentation-disabled": "otel_crdb.W004",
    "traces-exporter-none": "otel_crdb.W005",
    "metrics-exporter-none": "otel_crdb.W005",
    "logs-exporter-none": "otel_crdb.W005",
    "sampler-drops-all": "otel_crdb.W006",
    "port-of-other-protocol": "otel_crdb.W007",
    "no-cockroachdb-alias": "otel_crdb.W008",
    "wsgi-application-unset": "otel_crdb.W009",
    "middleware-missing": "otel_crdb.W010",
    "python-untested": "otel_crdb.W011",
    "django-untested": "otel_crdb.W011",
    "backend-of-other-django": "otel_crdb.W011",
    "no-backend": "otel_crdb.W011",
    "opt-in-read-early": "otel_crdb.W012",
    "two-instrumentations": "otel_crdb.W013",
    "option-refused": "otel_crdb.E001",
}


def check(**_: Any) -> list[CheckMessage]:
    """Return what is wrong, each with the line that mends it as its hint."""
    return [_message(finding) for finding in _findings() if finding.code in IDS]


def _findings() -> Iterator[Finding]:
    from .doctor import process

    yield from static.of_environment()
    yield from static.of_versions()
    yield from static.of_settings(settings)
    if not process.is_instrumented():
        yield from static.of_entries(settings)
    else:
        yield from process.of_middleware()
        yield from process.of_opt_in()
        yield from process.of_driver()


def _message(finding: Finding) -> CheckMessage:
    identifier = IDS[finding.code]
    kind = Error if ".E" in identifier else CheckWarning
    return kind(finding.what, hint=finding.mend or None, id=identifier)

# SPDX-License-Identifier: Apache-2.0
"""The Django application ``otel_crdb``: system checks and ``crdb_doctor``. It instruments nothing."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register


class OtelCrdbConfig(AppConfig):  # type: ignore[misc]
    """What ``"otel_crdb"`` in ``INSTALLED_APPS`` brings."""

    name = "otel_crdb"
    verbose_name = "OpenTelemetry for CockroachDB"

    def ready(self) -> None:
        """Register the system checks."""
        from .checks import check

        register(check, Tags.compatibility)

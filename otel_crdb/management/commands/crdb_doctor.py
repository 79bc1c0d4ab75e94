# SPDX-License-Identifier: Apache-2.0
"""``manage.py crdb_doctor``: the same as ``otel-crdb doctor``, with the settings of the project."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand

from otel_crdb.doctor import examination


class Command(BaseCommand):  # type: ignore[misc]
    """Examine what is instrumented, what it reaches, and whether telemetry arrives."""

    help = "Tell what is instrumented, whether telemetry arrives, and the line that mends what is wrong."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own form

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Take the options of ``otel-crdb doctor``."""
        examination.add_arguments(parser)

    def handle(self, *_: Any, **options: Any) -> None:
        """Examine; the exit status is 0: fine, 1: something is wrong, 2: it could not be done."""
        from_command_line = bool(getattr(self, "_called_from_command_line", False))
        status = examination.run(examination.asked_for(argparse.Namespace(**options)))
        if from_command_line:
            examination.leave(status)
        sys.exit(status)  # call_command()'s caller goes on

# SPDX-License-Identifier: Apache-2.0
"""The stable HTTP names, asked for before contrib reads what is asked for. Without Django."""

from __future__ import annotations

import os

from opentelemetry.instrumentation._semconv import _OpenTelemetrySemanticConventionStability

from .hooks import CarefulLogger

logger = CarefulLogger(__name__)

OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"


def opt_in_to_stable_http() -> None:
    """Ask contrib for the stable HTTP names, beside whatever else the process has opted in to.

    The variable is read once in a process: where contrib has read it before us, a note says so.
    """
    words = [word.strip() for word in os.environ.get(OPT_IN, "").split(",") if word.strip()]
    if {"http", "http/dup"} & set(words):
        return
    os.environ[OPT_IN] = ",".join([*words, "http"])
    if _OpenTelemetrySemanticConventionStability._initialized:
        logger.warning(
            "otel_crdb: %s was read before instrument() could ask for 'http': request spans keep the old "
            "attribute names. Call otel_crdb.instrument() first, or set the variable yourself.",
            OPT_IN,
        )

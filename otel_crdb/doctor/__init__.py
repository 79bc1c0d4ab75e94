# SPDX-License-Identifier: Apache-2.0
"""``otel-crdb doctor``: what is instrumented, what it reaches, whether telemetry arrives, what mends it."""

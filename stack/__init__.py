# SPDX-License-Identifier: Apache-2.0
"""The real stack without Docker: collector, Jaeger, Loki, Prometheus, on the very files of `collector/`."""

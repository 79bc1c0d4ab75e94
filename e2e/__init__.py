# SPDX-License-Identifier: Apache-2.0
"""What arrives in the real collector, Jaeger, Loki and Prometheus: `make test-e2e`."""

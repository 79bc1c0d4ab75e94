# SPDX-License-Identifier: Apache-2.0
"""Other people's tests, with and without ``otel_crdb.instrument()``: docs/unchanged.md."""

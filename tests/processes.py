# SPDX-License-Identifier: Apache-2.0
"""The environment of a process that a test starts."""

import os


def environment_of(**variables):
    """Return this process's environment without what steers telemetry, and with these variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    driver = {name: os.environ[name] for name in ("OTEL_CRDB_TEST_DRIVER",) if name in os.environ}
    return {**clean, **driver, **variables}

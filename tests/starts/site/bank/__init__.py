# SPDX-License-Identifier: Apache-2.0
"""A bank that is served in many ways. Files of its that start it are taken from docs/start.md."""

import os
import sys

if os.environ.get("BANK_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None  # Django takes psycopg 3 wherever it can be imported

# SPDX-License-Identifier: Apache-2.0
"""A bank: accounts, transfers between them, and the ledger that both answer to."""

import os
import sys

# Django takes psycopg 3 whenever it can be imported. This lets the demo show psycopg2 where both are
# installed; an application that wants psycopg2 simply does not install the other.
if os.environ.get("BANK_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None

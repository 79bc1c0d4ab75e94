# SPDX-License-Identifier: Apache-2.0
"""`python -m otel_crdb` is the command `otel-crdb`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""A worker: threads and an event loop that move money, instrumented as an application is.

Its journal goes to its output, a line of JSON an operation. Told `stop`, it takes on no more. When all is
done it closes its connections and says so, and stays until its input ends: what it has leaked can be seen.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from . import settings


def main(order: dict[str, Any]) -> None:
    """Set up Django on the driver that was asked for, then work."""
    settings.set_up(order["database"], order["driver"])
    import otel_crdb

    otel_crdb.instrument()
    from .work import Work  # its models can be imported only now

    work = Work(order)
    work.do()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

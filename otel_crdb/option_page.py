# SPDX-License-Identifier: Apache-2.0
"""The reference of the options: ``python -m otel_crdb.option_page > docs/options.md``."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

from . import config
from .exclusions import HEALTH_CHECKS
from .option_sources import PREFIX, SETTING

HEAD = f"""\
# Options

Made from `otel_crdb/config.py`; change it there.

An option can be said in three places. The later in this list goes before the earlier:

1. the setting `{SETTING}`, a dict: `{SETTING} = {{"excluded_urls": ["^/static/"]}}`
2. a variable, `{PREFIX}` and the option's name in capitals: `{PREFIX}EXCLUDED_URLS='^/static/'`;
   an empty one is as good as none
3. a keyword argument: `otel_crdb.instrument(excluded_urls=["^/static/"])`

They are read once, by `instrument()`. A name that does not exist, or a value that cannot be meant, raises
there: `TypeError` or `ValueError` for a keyword argument, `django.core.exceptions.ImproperlyConfigured` for a
variable or the setting. The message has the place, the value and the nearest name that there is. (Variables
that begin with `OTEL_CRDB_TEST_` are no options: they are for tests.)

Where telemetry goes, by which protocol, how much is sampled, what the service is called: OpenTelemetry's own
variables say that, see [delivery.md](delivery.md). `OTEL_SDK_DISABLED=true` switches everything off, and
`OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=otel_crdb` this package; with `django` in that list there are no spans
of requests.
"""

TAIL = f"""\
## What is taken for a health check

With `exclude_health_checks`, a request whose path (without a script's prefix) matches

```text
{HEALTH_CHECKS}
```

## Functions that add to what is told

```python
# bank/telemetry.py
def add_tenant(span, request):
    span.set_attribute("bank.tenant", request.headers.get("X-Tenant", "none"))


def add_alias(span, wrapper, sql):
    span.set_attribute("bank.alias", wrapper.alias)
```

```python
# bank/settings.py
OTEL_CRDB = {{"request_hook": "bank.telemetry.add_tenant", "statement_hook": "bank.telemetry.add_alias"}}
```

A dotted path is imported by `instrument()`, before Django has loaded its applications: the module imports
no models. A function is called only where the span is recorded. One that raises breaks nothing: the first
time is logged, all are counted in `otel_crdb.hook.faults`. What it sends to the database itself is told, and
calls no function. What it sets leaves as it is: mask what must not leave.

## Verify it

`otel-crdb doctor` lists the options that are in force and where each was said.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for option in config.options():
        kind, name = option.metadata["kind"], option.name
        meaning = textwrap.fill(option.metadata["meaning"], 110, break_long_words=False)
        rows = [f"## `{name}`", "", meaning, "", f"- default: `{_shown(option.default)}`"]
        rows.append(f"- {kind.words}")
        if kind.parse is not None:
            rows.append(f"- variable: `{PREFIX}{name.upper()}`, {kind.spelling}")
        parts.append("\n".join(rows) + "\n")
    return "\n".join([*parts, TAIL])


def _shown(value: Any) -> str:
    return '""' if value == "" else repr(value)


if __name__ == "__main__":
    sys.stdout.write(page())

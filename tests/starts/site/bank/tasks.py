# SPDX-License-Identifier: Apache-2.0
"""The bank's tasks."""

from . import ledger
from .celery import app


@app.task
def pay_later():
    """Pay in a worker."""
    ledger.pay("task")

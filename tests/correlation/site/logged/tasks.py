# SPDX-License-Identifier: Apache-2.0
"""A task that logs."""

import logging

from bank import ledger
from bank.celery import app


@app.task
def say_later():
    """Say it in a worker, and pay there."""
    logging.getLogger("logged").info("said")
    ledger.pay("task")

# SPDX-License-Identifier: Apache-2.0
"""The bank's settings, and a log. Nothing in them names otel_crdb: `instrument()` alone gives records their ids."""

import json
import os
from pathlib import Path

from bank.settings import *  # noqa: F403

ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "logged.urls"
CELERY_IMPORTS = ["logged.tasks"]
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
LOGGING = json.loads(Path(os.environ["LOGGED_CONFIGURATION"]).read_text())

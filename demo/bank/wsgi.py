# SPDX-License-Identifier: Apache-2.0
"""What a WSGI server loads: ``gunicorn bank.wsgi``."""

import os

from django.core.wsgi import get_wsgi_application

import otel_crdb

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bank.settings")
otel_crdb.instrument()
application = get_wsgi_application()

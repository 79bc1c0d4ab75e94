# SPDX-License-Identifier: Apache-2.0
"""Settings of the bank. For telemetry's sake there is LOGGING, and nothing else."""

import json
import os

import otel_crdb

SECRET_KEY = os.environ.get("BANK_SECRET_KEY", "for the demo only: the bank signs nothing")
ALLOWED_HOSTS = os.environ.get("BANK_HOSTS", "127.0.0.1,localhost").split(",")
USE_TZ = True
TIME_ZONE = "UTC"

INSTALLED_APPS = ["bank"]
ROOT_URLCONF = "bank.urls"
WSGI_APPLICATION = "bank.wsgi.application"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Errors go to the log and not to ADMINS, of whom there are none: Django 4.2 makes the report for them all the
# same, and runs the queries that it shows once more.
LOGGING = otel_crdb.logging_config(file=os.environ.get("BANK_LOG_FILE"), json=True, mail_admins=False)


def database() -> dict:
    """Read the database: ``BANK_DATABASE``, an entry of DATABASES as JSON, else one variable a part."""
    whole = os.environ.get("BANK_DATABASE")
    if whole:
        return json.loads(whole)
    return {
        "ENGINE": "django_cockroachdb",
        "HOST": os.environ.get("BANK_DB_HOST", "127.0.0.1"),
        "PORT": os.environ.get("BANK_DB_PORT", "26257"),
        "NAME": os.environ.get("BANK_DB_NAME", "defaultdb"),
        "USER": os.environ.get("BANK_DB_USER", "root"),
        "PASSWORD": os.environ.get("BANK_DB_PASSWORD", ""),
    }


DATABASES = {
    "default": {
        # A node that is drained takes its connections with it: keep them, but not blindly.
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        **database(),
    }
}

# SPDX-License-Identifier: Apache-2.0
"""Settings of the bank. Nothing in them is there for telemetry's sake."""

import json
import os

SECRET_KEY = "tests"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DEBUG = True  # runserver serves nothing else
INSTALLED_APPS = ["bank"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "bank.urls"
WSGI_APPLICATION = "bank.wsgi.application"
DATABASES = {"default": {**json.loads(os.environ["BANK_DATABASE"]), "CONN_MAX_AGE": 60}}
CELERY_BROKER_URL = "filesystem://"
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "data_folder_in": os.environ.get("BANK_QUEUE"),
    "data_folder_out": os.environ.get("BANK_QUEUE"),
    "control_folder": os.environ.get("BANK_QUEUE_CONTROL"),
    "polling_interval": 0.05,
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

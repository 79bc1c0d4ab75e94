# SPDX-License-Identifier: Apache-2.0
"""Settings of a process that stands beside a neighbour; ``BESIDE`` holds what that neighbour changes of them."""

import json
import os

SECRET_KEY = "tests"
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "tests.beside.urls"
INSTALLED_APPS = ["tests.project"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = json.loads(os.environ["TEST_DATABASES"])
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
INTERNAL_IPS = ["127.0.0.1"]

globals().update(json.loads(os.environ.get("BESIDE", "{}")))

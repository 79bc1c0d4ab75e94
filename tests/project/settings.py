# SPDX-License-Identifier: Apache-2.0
"""Settings of the tests' Django project; ``DATABASES`` comes from the running test server."""

import json
import os

SECRET_KEY = "tests"
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "tests.project.urls"
INSTALLED_APPS = ["django.contrib.sessions", "tests.project"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = json.loads(os.environ["TEST_DATABASES"])
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

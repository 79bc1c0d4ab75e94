# SPDX-License-Identifier: Apache-2.0
"""Commands of ``manage.py``, where ``otel_crdb`` is in ``INSTALLED_APPS``."""

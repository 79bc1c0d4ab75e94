# SPDX-License-Identifier: Apache-2.0
"""A database backend: django-cockroachdb with the counters of django-prometheus."""

from django_cockroachdb import base
from django_prometheus.db.common import DatabaseWrapperMixin, ExportingCursorWrapper


class DatabaseWrapper(DatabaseWrapperMixin, base.DatabaseWrapper):
    """django-cockroachdb's, with cursors that count."""

    def get_connection_params(self):
        params = super().get_connection_params()
        params["cursor_factory"] = ExportingCursorWrapper(params["cursor_factory"], self.alias, self.vendor)
        return params

    def create_cursor(self, name=None):
        return base.DatabaseWrapper.create_cursor(self, name=name)

# SPDX-License-Identifier: Apache-2.0
"""A little bank."""

from django.db import models


class Account(models.Model):
    """Somebody's money."""

    email = models.EmailField(unique=True)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "project"
        db_table = "account"

    def __str__(self):
        return self.email

# SPDX-License-Identifier: Apache-2.0
"""The bank of the soak: few accounts, so that transfers meet, and a ledger that shows what was applied.

Nothing in the ledger forbids an operation to be there twice: if one is applied twice, it shows.
"""

from django.db import models


class Account(models.Model):
    """What somebody has."""

    balance = models.BigIntegerField()

    class Meta:
        """The tables are known by their names to those who read them without Django."""

        app_label = "soak"
        db_table = "soak_account"

    def __str__(self):
        return str(self.pk)


class Movement(models.Model):
    """What one operation moved: the only row that it leaves."""

    operation = models.CharField(max_length=40, db_index=True)
    source = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+", db_index=False)
    target = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="+", db_index=False)
    amount = models.BigIntegerField()

    class Meta:
        """As above."""

        app_label = "soak"
        db_table = "soak_movement"

    def __str__(self):
        return self.operation


class Note(models.Model):
    """A table whose schema is changed while all goes on."""

    text = models.CharField(max_length=40, default="")

    class Meta:
        """As above."""

        app_label = "soak"
        db_table = "soak_note"

    def __str__(self):
        return self.text

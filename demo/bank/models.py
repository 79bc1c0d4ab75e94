# SPDX-License-Identifier: Apache-2.0
"""Accounts, transfers and the ledger. Amounts are whole cents."""

from django.db import models


class Account(models.Model):
    """What somebody has. The balance is kept for quick reading; the ledger is the truth."""

    owner = models.CharField(max_length=60, unique=True)
    balance = models.PositiveBigIntegerField()

    def __str__(self):
        return self.owner


class Transfer(models.Model):
    """An amount that went from one account to another."""

    sender = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="sent")
    recipient = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="received")
    amount = models.PositiveBigIntegerField()
    made_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return f"{self.amount} from {self.sender_id} to {self.recipient_id}"


class LedgerEntry(models.Model):
    """One side of a transfer, or, without a transfer, the money an account was opened with."""

    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="entries")
    transfer = models.ForeignKey(Transfer, on_delete=models.PROTECT, null=True, related_name="entries")
    amount = models.BigIntegerField(help_text="Negative where money leaves the account.")

    class Meta:
        """What Django cannot guess."""

        verbose_name_plural = "ledger entries"

    def __str__(self):
        return f"{self.amount:+} on {self.account_id}"

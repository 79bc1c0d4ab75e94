# SPDX-License-Identifier: Apache-2.0
"""Moving money: the transaction itself."""

from django.db import transaction

from .models import Account, LedgerEntry, Transfer


class InsufficientFunds(Exception):  # noqa: N818 - it is an answer, not a fault
    """The sender has less than the amount."""


def move(sender: str, recipient: str, amount: int) -> Transfer:
    """Move an amount between two accounts, wholly or not at all.

    Read, decide, write: the natural way, and right under SERIALIZABLE. What two of these did at once
    on the same account could not have happened one after the other, so the database refuses one of
    them with SQLSTATE 40001.

    Raises:
        Account.DoesNotExist: there is no such account.
        InsufficientFunds: the sender has less than that; nothing was moved.

    """
    with transaction.atomic():
        # In the order of their keys, whichever way the money goes: two opposite transfers then wait in
        # line instead of for each other.
        found = Account.objects.filter(owner__in=(sender, recipient)).order_by("pk")
        accounts = {account.owner: account for account in found}
        for owner in (sender, recipient):
            if owner not in accounts:
                raise Account.DoesNotExist(owner)
        if accounts[sender].balance < amount:
            raise InsufficientFunds
        accounts[sender].balance -= amount
        accounts[recipient].balance += amount
        for account in accounts.values():
            account.save(update_fields=["balance"])
        made = Transfer.objects.create(sender=accounts[sender], recipient=accounts[recipient], amount=amount)
        LedgerEntry.objects.bulk_create(
            [
                LedgerEntry(account=accounts[sender], transfer=made, amount=-amount),
                LedgerEntry(account=accounts[recipient], transfer=made, amount=amount),
            ]
        )
    return made

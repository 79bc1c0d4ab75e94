# SPDX-License-Identifier: Apache-2.0
"""Moving money: the transaction itself, and how often it is tried."""

import logging

from django.db import DatabaseError, transaction

from otel_crdb import run_transaction

from .models import Account, LedgerEntry, Transfer

MOST_ATTEMPTS = 3
logger = logging.getLogger(__name__)


class InsufficientFunds(Exception):  # noqa: N818 - it is an answer, not a fault
    """The sender has less than the amount."""


def transfer(sender: str, recipient: str, amount: int, attempts: int = MOST_ATTEMPTS) -> Transfer:
    """Move an amount between two accounts, wholly or not at all, in so many attempts at the most.

    What two transfers did at once on the same account could not have happened one after the other, so the
    database refuses one of them with SQLSTATE 40001. That one is run again.

    Raises:
        Account.DoesNotExist: there is no such account.
        InsufficientFunds: the sender has less than that; nothing was moved.
        otel_crdb.RetriesExhaustedError: every attempt was refused; nothing was moved.
        otel_crdb.AmbiguousCommitError: nobody knows whether the amount was moved.

    """
    return run_transaction(move, sender, recipient, amount, max_attempts=attempts)


def move(sender: str, recipient: str, amount: int) -> Transfer:
    """Read, decide, write: the natural way, and right under SERIALIZABLE.

    It may run several times, so it reads everything anew, keeps nothing from one time to the next, and
    does nothing outside the database.
    """
    # In the order of their keys, whichever way the money goes: two opposite transfers then wait in line
    # instead of for each other.
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


@transaction.atomic
def deposit(recipient: str, amount: int) -> dict:
    """Pay in, and tell the new balance and how many entries the account has: **how not to do it**.

    The count is only for the receipt, so its failure seems harmless. But whatever fails has already aborted
    the whole transaction: COMMIT becomes a rollback, and nothing of the deposit stays. The drill
    ``silent_abort`` shows it.
    """
    account = Account.objects.filter(owner=recipient).first()
    if account is None:
        raise Account.DoesNotExist(recipient)
    account.balance += amount
    account.save(update_fields=["balance"])
    LedgerEntry.objects.create(account=account, amount=amount)
    receipt = {"balance": account.balance}
    try:
        receipt["entries"] = account.entries.count()
    except DatabaseError:
        logger.warning("no count for the receipt")
    return receipt

# SPDX-License-Identifier: Apache-2.0
"""``manage.py seed``: accounts with money in them."""

from bank.models import Account, LedgerEntry, Transfer
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction


class Command(BaseCommand):
    """Open accounts, once: a bank that has some is left as it is."""

    help = "Open accounts customer-01, customer-02 and so on, unless the bank has accounts."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--accounts", type=int, default=16, help="how many (default: %(default)s)")
        parser.add_argument("--balance", type=int, default=1_000_00, help="cents each (default: %(default)s)")
        parser.add_argument("--fresh", action="store_true", help="first empty the bank's tables")

    @transaction.atomic
    def handle(self, *, accounts: int, balance: int, fresh: bool, **_: object) -> None:
        """Open them, each with the entry that its balance came with."""
        if fresh:
            for model in (LedgerEntry, Transfer, Account):
                model.objects.all().delete()
        if Account.objects.exists():
            self.stdout.write("The bank has accounts: nothing done.")
            return
        opened = [
            Account.objects.create(owner=f"customer-{number:02}", balance=balance)
            for number in range(1, accounts + 1)
        ]
        LedgerEntry.objects.bulk_create(LedgerEntry(account=account, amount=balance) for account in opened)
        self.stdout.write(f"Opened {accounts} accounts with {balance} cents each.")

# SPDX-License-Identifier: Apache-2.0
"""A command that forks."""

from django.core.management.base import BaseCommand

from bank import forks, ledger


class Command(BaseCommand):
    """Pay, have children pay, and pay again."""

    def handle(self, *args, **options):
        """Do it."""
        ledger.pay("command")
        assert forks.pay_in_a_child() == 0
        assert forks.pay_in_a_bare_fork() == 0
        ledger.pay("command")

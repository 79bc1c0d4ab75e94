# SPDX-License-Identifier: Apache-2.0
"""The bank's tables."""

from django.db import migrations, models
from django.db.models.deletion import PROTECT


def key() -> models.BigAutoField:
    """Give the primary key that every table has."""
    return models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    """Accounts, transfers, ledger."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Account",
            fields=[
                ("id", key()),
                ("owner", models.CharField(max_length=60, unique=True)),
                ("balance", models.PositiveBigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="Transfer",
            fields=[
                ("id", key()),
                ("amount", models.PositiveBigIntegerField()),
                ("made_at", models.DateTimeField(auto_now_add=True)),
                ("recipient", models.ForeignKey("bank.account", on_delete=PROTECT, related_name="received")),
                ("sender", models.ForeignKey("bank.account", on_delete=PROTECT, related_name="sent")),
            ],
        ),
        migrations.CreateModel(
            name="LedgerEntry",
            fields=[
                ("id", key()),
                ("amount", models.BigIntegerField(help_text="Negative where money leaves the account.")),
                ("account", models.ForeignKey("bank.account", on_delete=PROTECT, related_name="entries")),
                (
                    "transfer",
                    models.ForeignKey("bank.transfer", null=True, on_delete=PROTECT, related_name="entries"),
                ),
            ],
            options={"verbose_name_plural": "ledger entries"},
        ),
    )

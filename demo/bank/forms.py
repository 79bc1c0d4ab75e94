# SPDX-License-Identifier: Apache-2.0
"""What a request for a transfer must hold."""

from django import forms

from .transfers import MOST_ATTEMPTS


class TransferForm(forms.Form):
    """Who pays whom, how many cents, and how often the bank may try."""

    sender = forms.CharField(max_length=60)
    recipient = forms.CharField(max_length=60)
    amount = forms.IntegerField(min_value=1)
    attempts = forms.IntegerField(min_value=1, max_value=MOST_ATTEMPTS, required=False)

    def clean_attempts(self) -> int:
        """Take the most where nothing is said."""
        return self.cleaned_data["attempts"] or MOST_ATTEMPTS

    def clean(self) -> dict:
        """Refuse a transfer of an account to itself."""
        order = super().clean()
        if order.get("sender") and order.get("sender") == order.get("recipient"):
            raise forms.ValidationError("from and to are the same account")
        return order


class DepositForm(forms.Form):
    """Whose account, and how many cents."""

    recipient = forms.CharField(max_length=60)
    amount = forms.IntegerField(min_value=1)

# SPDX-License-Identifier: Apache-2.0
"""A model of bank, retry loop and server: any transfer, any fault at any point, and what must hold after each.

``bank`` is the real thing, ``plans`` what may be drawn, ``trial`` one transfer with its faults, ``verdicts`` what the
documentation says of each fault, ``invariants`` and ``told`` what must hold, ``machine`` the steps, ``defects`` breaks of
the retry loop that have to be found.
"""

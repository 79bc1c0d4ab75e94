# SPDX-License-Identifier: Apache-2.0
"""A small site whose every view logs a line, somewhere where its ids are easily lost."""

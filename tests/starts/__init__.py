# SPDX-License-Identifier: Apache-2.0
"""An application that is started in every way that docs/start.md tells of."""

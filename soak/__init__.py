# SPDX-License-Identifier: Apache-2.0
"""`make soak`: many transactions through failing nodes, and proof that nothing was lost or doubled."""

# SPDX-License-Identifier: Apache-2.0
"""Many threads of several processes write through the rotation of one file; every line is looked for."""

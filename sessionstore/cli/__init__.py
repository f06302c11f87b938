# SPDX-License-Identifier: MIT
"""The command line. The package itself never imports it: this folder can be deleted."""

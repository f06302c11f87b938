# SPDX-License-Identifier: MIT
"""Run the command line as `python -m sessionstore`."""

import sys

from .cli.main import main

sys.exit(main())

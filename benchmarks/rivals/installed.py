# SPDX-License-Identifier: MIT
"""What is installed here, and in which version. Nothing is imported to find out."""

import shutil
from importlib import metadata, util


def find_missing(*modules: str, program: str | None = None) -> str | None:
    """Return what of the modules and the program has to be installed, or None if all is there."""
    missing = [module for module in modules if util.find_spec(module) is None]
    if program is not None and shutil.which(program) is None:
        missing.append(f"the program {program}")
    return ", ".join(missing) or None


def versions(*distributions: str) -> str:
    """Return the names and versions of the distributions, which are installed."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in distributions)

"""Whether the package that writes GGUF files is here. It is an extra, and imported when used."""

from __future__ import annotations

import importlib.util

from vacc_deploy.errors import UsageError


def check_package() -> None:
    """Refuse to begin without the package ``gguf``.

    Raises:
        UsageError: says how to install it.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            "--format gguf needs the package gguf. Run: python3 -m pip install 'vacc-deploy[gguf]'"
        )

"""The optional packages that some calibration files need: imported when such a file is read."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from vacc_deploy.errors import CalibrationError

# Package to its lowest release, as in the extra ``data`` of setup.py. An older pyarrow unpickles
# what a file tells it to (CVE-2023-47248).
LOWEST = {"pyarrow": (14, 0, 1), "zstandard": (0, 22, 0)}


def find_package(name: str) -> ModuleType | None:
    """Return an optional package; None where it is missing or too old."""
    try:
        package = importlib.import_module(name)
    except ImportError:
        return None
    return package if _version_of(package) >= LOWEST[name] else None


def load_package(name: str, path: Path, what: str) -> ModuleType:
    """Return an optional package that reads ``path``, which holds ``what``.

    Raises:
        CalibrationError: the package is missing or too old; gives the command that installs it.
    """
    package = find_package(name)
    if package is None:
        raise CalibrationError(f"{path} is {what}. {how_to_install(name)}")
    return package


def how_to_install(name: str) -> str:
    """Return the sentences that name an optional package and the command that installs it."""
    version = ".".join(map(str, LOWEST[name]))
    return (
        f"Reading it needs the package {name} {version} or newer. Install it, then rerun:\n"
        f"  python3 -m pip install '{name}>={version}'"
    )


def _version_of(package: ModuleType) -> tuple[int, ...]:
    numbers = []
    for part in str(getattr(package, "__version__", "")).split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    return tuple(numbers)

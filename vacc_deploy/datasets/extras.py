"""The optional packages that some calibration files need: imported when such a file is read."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
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


def has_package(name: str) -> bool:
    """Return whether an optional package is there and new enough, without an import of it."""
    if name in sys.modules:
        return find_package(name) is not None
    return _is_installed(name)


@functools.lru_cache
def _is_installed(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    try:
        return _numbers_of(importlib.metadata.version(name)) >= LOWEST[name]
    except importlib.metadata.PackageNotFoundError:
        return find_package(name) is not None


def load_package(name: str, path: Path, what: str) -> ModuleType:
    """Return an optional package that reads ``path``, which holds ``what``.

    Raises:
        CalibrationError: the package is missing or too old; gives the command that installs it.
    """
    package = find_package(name)
    if package is None:
        raise missing_package(name, path, what)
    return package


def missing_package(name: str, path: Path, what: str) -> CalibrationError:
    """Return the error of a file that an optional package would read."""
    return CalibrationError(f"{path} is {what}. {how_to_install(name)}")


def how_to_install(name: str) -> str:
    """Return the sentences that name an optional package and the command that installs it."""
    version = ".".join(map(str, LOWEST[name]))
    return (
        f"Reading it needs the package {name} {version} or newer. Install it, then rerun:\n"
        f"  python3 -m pip install '{name}>={version}'"
    )


def _version_of(package: ModuleType) -> tuple[int, ...]:
    return _numbers_of(str(getattr(package, "__version__", "")))


def _numbers_of(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        numbers.append(int(digits or 0))
    return tuple(numbers)

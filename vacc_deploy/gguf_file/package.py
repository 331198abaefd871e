"""Whether the package that writes GGUF files is here. It is an extra, and imported when used."""

from __future__ import annotations

from importlib import metadata

from vacc_deploy.errors import UsageError

_PACKAGE = "gguf"
# What ``assemble`` uses.
_USED = ("GGUFWriter", "GGUFValueType", "GGMLQuantizationType")
_METHODS = ("add_key_value", "add_tensor_info", "write_ti_data_to_file")
# Its lowest release, as in the extra ``gguf`` of setup.py.
_LOWEST = (0, 19)
_INSTALL = "Run: python3 -m pip install --upgrade 'vacc-deploy[gguf]'"


def check_package() -> str:
    """Refuse to begin without the package ``gguf``; return its version.

    Raises:
        UsageError: says what stands in its place, and how to install it.
    """
    try:
        import gguf
    except ModuleNotFoundError as err:
        if err.name != _PACKAGE:
            raise _refuse(f" It cannot be imported: {err}.") from err
        raise _refuse("") from err
    except Exception as err:  # a stranger's code may raise anything
        raise _refuse(f" It cannot be imported: {type(err).__name__}: {err}.") from err
    writer = getattr(gguf, _USED[0], None)
    lacking = [name for name in _USED if not hasattr(gguf, name)]
    lacking += [name for name in _METHODS if writer and not hasattr(writer, name)]
    if lacking:
        where = getattr(gguf, "__file__", None) or ", ".join(map(str, gguf.__path__))
        raise _refuse(
            f" What is imported under this name is {where}, without {', '.join(lacking)}: an old "
            "one, another one, or a mere folder. Leave that folder, or install the package."
        )
    try:
        version = metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError as err:
        raise _refuse(f" {gguf.__file__} is not installed, so its version is not known.") from err
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < _LOWEST:
        raise _refuse(f" Version {version} is installed, expected {_LOWEST[0]}.{_LOWEST[1]}.")
    return version


def _refuse(why: str) -> UsageError:
    return UsageError(f"--format gguf needs the package gguf.{why} {_INSTALL}")

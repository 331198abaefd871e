"""Find the asset folders in a wheel, a checkout and an editable install.

In a wheel ``source_code/`` is installed as ``vacc_deploy/_source_code/``; in a checkout it lies
beside the package. The files are data here: nothing imports them from these folders.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE_DIR = Path(__file__).resolve().parent

SOURCE_FILES = ("configuration_qwen2_vacc.py", "modeling_qwen2_vacc.py", "quantization_vacc.py")


def asset_dir(folder: str) -> Path:
    """Return the directory of an asset folder: ``source_code``, ``yaml`` or ``build_in``.

    Raises:
        FileNotFoundError: the installation lost the folder.
    """
    installed, checkout = _PACKAGE_DIR / f"_{folder}", _PACKAGE_DIR.parent / folder
    for candidate in (installed, checkout):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"The asset folder {folder!r} is in neither {installed} nor {checkout}: the installation "
        "is damaged. Install vacc-deploy again."
    )


def source_file(name: str) -> Path:
    """Return the path of one of ``SOURCE_FILES``."""
    return asset_dir("source_code") / name


def is_own_source(path: Path) -> bool:
    """Return whether ``path`` is, byte for byte, the one of ``SOURCE_FILES`` of its name."""
    own = source_file(path.name)
    # The size first: a stranger's file may be of any.
    is_same_size = path.is_file() and path.stat().st_size == own.stat().st_size
    return is_same_size and path.read_bytes() == own.read_bytes()


def demo_model_dir() -> Path:
    """Return the directory of the small trained model that the package carries."""
    return _PACKAGE_DIR / "data" / "demo_model"


def default_text_file() -> Path:
    """Return the text that ``verify`` reads when none is given."""
    return _PACKAGE_DIR / "data" / "verify.txt"


def published_config(model: str) -> Path:
    """Return the ``config.json`` of a catalogue model, as its authors published it."""
    return _PACKAGE_DIR / "data" / "configs" / f"{model}.json"

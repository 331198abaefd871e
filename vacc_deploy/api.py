"""The functions and classes that scripts may rely on; ``docs/architecture.md`` describes them.

Each name is imported from its module when it is first asked for: importing this module is cheap,
and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import build_rows as build_rows
    from vacc_deploy.datasets.sources import parse_source as parse_source
    from vacc_deploy.errors import VaccDeployError as VaccDeployError
    from vacc_deploy.prepare import prepare as prepare
    from vacc_deploy.quantize.options import QuantizeOptions as QuantizeOptions
    from vacc_deploy.quantize.run import quantize as quantize
    from vacc_deploy.reference.generate import generate as generate
    from vacc_deploy.reference.limits import Limits as Limits
    from vacc_deploy.reference.loader import load_model as load_model
    from vacc_deploy.reference.verify import verify as verify
    from vacc_deploy.text.tokenizer import Tokenizer as Tokenizer

# A module of its own, not vacc_deploy itself: there "prepare" and "quantize" are a module and a
# folder, and importing those would replace the functions of the same names.
_MODULES = {
    "Limits": "reference.limits",
    "QuantizeOptions": "quantize.options",
    "Tokenizer": "text.tokenizer",
    "VaccDeployError": "errors",
    "build_rows": "calibration.rows",
    "generate": "reference.generate",
    "load_model": "reference.loader",
    "parse_source": "datasets.sources",
    "prepare": "prepare",
    "quantize": "quantize.run",
    "verify": "reference.verify",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"vacc_deploy.{_MODULES[name]}"), name)

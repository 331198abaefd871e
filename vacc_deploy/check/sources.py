"""Check the source files that vamc runs against ours, and recognise the vendor's originals.

The hashes are those of every version of these files in the vendor's public repository up to 43aff36
(2026-06-29). What is wrong with them was measured: see ``problems.configuration``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vacc_deploy.assets import SOURCE_FILES, is_own_source
from vacc_deploy.bounds import SIDE_FILE_BYTES
from vacc_deploy.checkpoint.fingerprint import fingerprint_file
from vacc_deploy.models.rope import YARN
from vacc_deploy.models.vacc_config import needs_vacc_config
from vacc_deploy.problems.configuration import (
    OTHER_SOURCE,
    VENDOR_CONFIGURATION,
    VENDOR_MODELING,
    VENDOR_ROUNDING,
    VENDOR_ROUNDING_EXACT,
    VENDOR_YARN,
)
from vacc_deploy.problems.problem import Problem, Rule

if TYPE_CHECKING:
    from vacc_deploy.check.directory import CheckedDirectory

_CONFIGURATION, _MODELING, _ROUNDING = SOURCE_FILES
# SHA-256 of the vendor's files.
_VENDOR = {
    _CONFIGURATION: (
        "2e027345b87c1f157dffb1977f9d89db1273dd2e1a00cdce123cd1fc42e0ad5e",
        "354a27269c57d78f6a79f744754dc48e4fa228362280d82642f7b75e8dda9843",
        "5708316edc936eae40470d03f2763edf80ed5952ac2e277fb67d71d206eda5fc",
    ),
    _MODELING: (
        "29a960007138c8506d9616853908104778c524f48d542d86732046edaa37d1be",
        "3a637c1cb51569a701d9872f243378baaf0302408d181593e9c3a0cc7413b6bb",
        "568935e825991143b7cdb193b7e85b2901de3ad02363b752cec06bd8bcd79ba7",
        "6923355b5e7dd1b0ef5163d4d8c02f458437d652dca0e794ca8b7252fafbeb20",
        "6a72c2be4c7fb6f85676a7d4506b7fa5c807a39fbb0fc640f8c7467c065c800f",
        "746c4911313203d7a8cee578a3f94beed2f62bb1510988ee8f8de8a5c26fbdfb",
        "c2e65c3a0ff3c59cd0c4af2610e69dd138f493fb7eec550804325d9b1eb1a385",
        "e21149c735e7576e9cf0a5a738087b251a6efb81bb913271acd2af9f49b14f11",
    ),
    _ROUNDING: (
        "04da9b12f2380551406d29a5d5434c220f24599059120a844ee5e0667b4f0c8c",
        "19469042a2f5bf69b2d742f789debfd04669b510e69eadce0e014316169c671c",
        "356e2316a69bd937faf8b50a72219c6b97b71200aff0ae489cea50e3ce819b64",
        "3fae9f9c41ad48a2d829bfc35e6d9cc5438ee50d738f9ae80d569cdc69ca6e1d",
        "97875b7a93d5d5be15a74c00d71aa0fccdf18f8f6290e5204c474e757cd95189",
        "c7b419562ad2f2809fb4eae20055063adb3151f9599d1309039c25e248dd7e83",
    ),
}


def find_source_problems(checked: CheckedDirectory) -> Iterator[Problem]:
    """Yield every source file that is not the one of this version; a missing one is no matter here.

    A Llama model has none.
    """
    checkpoint = checked.checkpoint
    assert checkpoint is not None
    if not needs_vacc_config(checkpoint.config):
        return
    for name in SOURCE_FILES:
        path = checkpoint.directory / name
        if not path.is_file() or is_own_source(path):
            continue
        # A file of another size than any source file has is read no further than this.
        is_small = path.stat().st_size <= SIDE_FILE_BYTES
        if not is_small or fingerprint_file(path) not in _VENDOR[name]:
            text = f"{name} differs from the file of this version of vacc-deploy"
            yield OTHER_SOURCE.broken(text, where=name)
            continue
        for rule in _vendor_rules(name, checked):
            yield rule.broken(f"{name} is the vendor's file: {rule.title}", where=name)


def _vendor_rules(name: str, checked: CheckedDirectory) -> Iterator[Rule]:
    """Yield what is wrong with a file of the vendor beside these weights."""
    checkpoint = checked.checkpoint
    assert checkpoint is not None
    if name == _CONFIGURATION:
        yield VENDOR_CONFIGURATION
    elif name == _ROUNDING:
        is_bfloat16 = any(info.dtype == "BF16" for info in checkpoint.tensors.values())
        yield VENDOR_ROUNDING if is_bfloat16 else VENDOR_ROUNDING_EXACT
    else:
        yield VENDOR_MODELING
        scaling = checkpoint.config.rope_scaling
        if scaling is not None and scaling.rope_type == YARN:
            yield VENDOR_YARN

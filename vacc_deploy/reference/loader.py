"""Load a prepared or quantized directory as a transformers model in evaluation mode, on the CPU.

Owns what may be run from a directory (nothing but files that are byte-equal to ours, and of those
our own copies), and what the installed transformers must be able to read. ``generate`` lets the
model answer.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from vacc_deploy.assets import SOURCE_FILES, asset_dir, is_own_source
from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.checkpoint.manifest import stored_layout
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import VAMC
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.library_config import library_config, own_config
from vacc_deploy.models.parse import read_object
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME, check_vacc_config, needs_vacc_config

# Always named: a configuration may name a kernel on the hub, which transformers would fetch.
_ATTENTION = "eager"
# The first transformers whose own classes compute an architecture or a rotary rule. Before 4.51
# yarn blended by max_position_embeddings instead of the trained length.
_FIRST_VERSIONS = {"llama3": (4, 43), "qwen3": (4, 51), "yarn": (4, 51)}
_SOURCE_PACKAGE = "vacc_deploy_source_code"


def load_model(source: Path | Checkpoint, *, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model of a directory in evaluation mode.

    Qwen directories for the compiler run the shipped modeling file; all others run transformers'
    own class. Codes of any layout stay int8: the linears are those of ``quantization_vacc.py``. So
    do the int8 values of a vamc directory where ``dtype`` is bfloat16, which cannot hold them.

    Args:
        source: what ``prepare`` or ``quantize`` wrote, or any float checkpoint; opened or not.
        dtype: dtype of activations and float weights.

    Raises:
        CheckpointError: the directory is damaged, its source files are not ours, its two
            configurations describe two models, or the installed transformers is too old for it.
    """
    checkpoint = Checkpoint.open(source) if isinstance(source, Path) else source
    with unchanged(checkpoint):
        return _load(checkpoint, dtype)


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    directory, config = checkpoint.directory, checkpoint.config
    generation, _ = read_generation_config(directory, config.vocab_size)
    layout = stored_layout(directory, config)
    is_prepared = needs_vacc_config(config) and (directory / VACC_CONFIG_NAME).is_file()
    if is_prepared:
        check_vacc_config(directory, config)
    if layout == VAMC and dtype == torch.bfloat16:
        # As float weights, bfloat16 would round the int8 values: 8 digits of products of up to 18.
        is_prepared = False
    else:
        layout = config.quantization_format
    with _parameters_on_meta():
        if is_prepared:
            model = _build_own(checkpoint, dtype)
        else:
            model = _build_stock(checkpoint, layout, dtype)
    _fill(model, checkpoint, layout, dtype)
    if generation and generation.get("eos_token_id") is not None:
        model.generation_config.eos_token_id = generation["eos_token_id"]
    return model.eval()


def activation_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return float32 for models up to three billion parameters, else bfloat16, to halve memory."""
    # In float32 three billion parameters take 12 GB.
    is_small = checkpoint.config.num_parameters() <= 3_000_000_000
    return torch.float32 if is_small else torch.bfloat16


def check_source_files(directory: Path) -> None:
    """Refuse a directory whose three source files are not exactly ours.

    Raises:
        CheckpointError: names the files that are missing or changed.
    """
    changed = [name for name in SOURCE_FILES if not is_own_source(directory / name)]
    if changed:
        raise CheckpointError(
            f"{directory}: each of these files is missing or differs from that of this version of "
            f"vacc-deploy: {', '.join(changed)}. Loading would run it as code, so it is refused. "
            "Make the directory again with prepare or quantize of this version."
        )


def source_module(name: str) -> ModuleType:
    """Import one of the three files from the package's own asset folder.

    They become the modules of one package, so that they find each other. transformers' own loader
    would copy a directory's files into the user's home first, which a container may not allow.
    """
    if _SOURCE_PACKAGE not in sys.modules:
        package = ModuleType(_SOURCE_PACKAGE)
        package.__path__ = [str(asset_dir("source_code"))]
        sys.modules[_SOURCE_PACKAGE] = package
    return importlib.import_module(f"{_SOURCE_PACKAGE}.{name}")


def _check_library_knows(checkpoint: Checkpoint) -> None:
    """Say which transformers to install where the installed one cannot compute the model."""
    import transformers

    config, version = checkpoint.config, transformers.__version__
    # Two parts only: the third may hold letters, as in 5.0.0rc1.
    installed = tuple(int(part) for part in version.split(".")[:2])
    rope_type = config.rope_scaling.rope_type if config.rope_scaling else "default"
    needs = [
        (f"model_type {config.model_type}", _FIRST_VERSIONS.get(config.model_type)),
        (f"rope_scaling of type {rope_type}", _FIRST_VERSIONS.get(rope_type)),
    ]
    for what, first in needs:
        if first is not None and installed < first:
            name = ".".join(map(str, first))
            raise CheckpointError(
                f"{checkpoint.directory}: config.json has {what}, which transformers {name} and "
                f"newer read; transformers {version} is installed. Run: pip install "
                f"'transformers>={name}'"
            )


def _build_own(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Build our modeling file's class through ``config_vacc.json``, as the compiler does.

    The classes are named here. ``trust_remote_code=True`` would run whatever file the directory's
    ``auto_map`` names, and its ``custom_generate/generate.py``.
    """
    directory = checkpoint.directory
    check_source_files(directory)
    config_class = source_module("configuration_qwen2_vacc").Qwen2Config
    model_class = source_module("modeling_qwen2_vacc").Qwen2ForCausalLM
    path = directory / VACC_CONFIG_NAME
    with _config_errors(path):
        config = config_class(**own_config(read_object(path), checkpoint.config.vocab_size))
    config._attn_implementation = _ATTENTION
    return model_class._from_config(config, **_dtype_option(dtype))


def _build_stock(checkpoint: Checkpoint, layout: str, dtype: torch.dtype) -> Any:
    """Build transformers' own class; of a layout with codes its linears are swapped."""
    from transformers import AutoConfig, AutoModelForCausalLM

    _check_library_knows(checkpoint)
    with _config_errors(checkpoint.directory / CONFIG_NAME):
        config = AutoConfig.for_model(**library_config(checkpoint.config))
    config._attn_implementation = _ATTENTION
    model = AutoModelForCausalLM.from_config(config, **_dtype_option(dtype))
    if layout:
        source_module("quantization_vacc").replace_linears(model, dtype=dtype)
    return model


def _fill(model: Any, checkpoint: Checkpoint, layout: str, dtype: torch.dtype) -> None:
    """Read our tensors into an empty model.

    transformers would read the files by rules of its own, which differ between its versions.
    """
    import transformers

    is_tied = checkpoint.config.tie_word_embeddings
    # A tied head is not read, so its name is missing; what else is missing is found on
    # the meta device below.
    # `assign` puts our tensors in place of the empty ones: nothing is copied.
    model.load_state_dict(_read_state(checkpoint, layout, dtype), strict=not is_tied, assign=True)
    if is_tied:
        # `assign` has replaced the embedding, and the head still holds the empty one.
        model.tie_weights()
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"{checkpoint.directory}: the installed transformers {transformers.__version__} leaves "
            f"{', '.join(empty[:10])} without values. Install a version that docs/compatibility.md "
            "lists, for example: python3 -m pip install 'transformers==4.57.1'"
        )


def _read_state(checkpoint: Checkpoint, layout: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return all tensors: int8 codes and scales where there are any, the others in ``dtype``."""
    state, linears = dict[str, torch.Tensor](), checkpoint.config.linear_names()
    for name in checkpoint.config.expected_tensors():
        linear = name.removesuffix(".weight")
        if layout and linear in linears:
            codes, scale = codes_from(layout, checkpoint.read, linear)
            # The names that quantization_vacc.py reads, whatever the layout calls its tensors.
            state |= {name: codes, f"{linear}.weight_scale": scale}
        else:
            state[name] = checkpoint.read(name).to(dtype)
    return state


@contextmanager
def _config_errors(path: Path) -> Iterator[None]:
    """Turn what a configuration class says of the values in ``path`` into a ``CheckpointError``."""
    refusals: list[type[Exception]] = [AttributeError, LookupError, TypeError, ValueError]
    with suppress(ImportError):
        # What newer versions of transformers raise for a field of another type.
        from huggingface_hub.errors import StrictDataclassError

        refusals.append(StrictDataclassError)
    try:
        yield
    except tuple(refusals) as err:
        raise CheckpointError(
            f"{path} is refused by its configuration class: {err}. Restore the file from the "
            "model's original repository."
        ) from err


def _dtype_option(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the option under the name that the installed transformers wants."""
    import transformers

    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    return {name: dtype}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters and int8 codes take no memory.

    Other buffers are left alone: the rotary ones are in no checkpoint, and transformers 4.43 cannot
    compute them on the meta device.
    """

    def move(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter) -> Any:
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    def move_codes(_module: torch.nn.Module, _name: str, buffer: torch.Tensor) -> Any:
        return buffer.to("meta") if buffer is not None and buffer.dtype == torch.int8 else buffer

    handles = (
        register_module_parameter_registration_hook(move),
        register_module_buffer_registration_hook(move_codes),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Load a prepared or quantized directory as a transformers model and let it answer, on the CPU.

No code is run from a directory: its three files must be byte-equal to those that this package
carries, and these are run.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from vacc_deploy.assets import SOURCE_FILES, asset_dir, source_file
from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.model_config import CONFIG_NAME
from vacc_deploy.quantize.formats import codes_from
from vacc_deploy.results import format_seconds
from vacc_deploy.tokenizer import Tokenizer
from vacc_deploy.vacc_config import VACC_CONFIG_NAME, check_vacc_config, needs_vacc_config

LLAMA3_ROPE_SINCE = (4, 43)
_GUARD_KEYS = (
    *("quantization_config", "quantization_bit", "auto_map"),
    *("attn_implementation", "_attn_implementation"),
)
# Always named: a configuration may name a kernel on the hub, which transformers would fetch.
_ATTENTION = "eager"
_SOURCE_PACKAGE = "vacc_deploy_source_code"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: ``top_k`` 0 is no limit; the same ``seed`` draws the same tokens."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """One chat turn.

    Attributes:
        prompt: the user's words.
        text: what the model wrote, special tokens included.
        num_prompt_tokens: tokens of the templated prompt.
        num_new_tokens: tokens written.
        seconds: for writing them.
        finished: whether the model ended by itself, not by the limit.
    """

    prompt: str
    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    seconds: float
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_new_tokens": self.num_new_tokens,
            "seconds": round(self.seconds, 3),
            "finished": self.finished,
        }

    def to_text(self) -> str:
        """Return the answer, and a line of figures."""
        end = "" if self.finished else ", stopped at --max-new-tokens"
        rate = self.num_new_tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.text}\n\n[{self.num_new_tokens} tokens in {format_seconds(self.seconds)}, "
            f"{rate:.1f} tokens/s{end}]"
        )


def check_source_files(directory: Path) -> None:
    """Refuse a directory whose three source files are not exactly ours.

    Raises:
        CheckpointError: names the files that are missing or changed.
    """
    changed = [
        name
        for name in SOURCE_FILES
        if not (directory / name).is_file()
        or (directory / name).read_bytes() != source_file(name).read_bytes()
    ]
    if changed:
        raise CheckpointError(
            f"{directory}: {', '.join(changed)} missing or not the file this version of "
            "vacc-deploy carries. Loading would run it as code, so it is refused. Prepare the "
            "directory again with this version."
        )


def load_model(directory: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Return the directory's model in evaluation mode.

    Qwen2 directories for the compiler run the shipped modeling file; all others run transformers'
    own class. Codes of any layout stay int8: the linears are those of ``quantization_vacc.py``.

    Args:
        directory: one that ``prepare`` or ``quantize`` wrote, or any float checkpoint.
        dtype: of activations and float weights.

    Raises:
        CheckpointError: the directory is damaged, its source files are not ours, its two
            configurations describe two models, or the installed transformers is too old for it.
    """
    checkpoint = Checkpoint.open(directory)
    _check_rope_is_known(checkpoint)
    if needs_vacc_config(checkpoint.config) and (directory / VACC_CONFIG_NAME).is_file():
        check_vacc_config(directory, checkpoint.config)
        return _load_own_code(directory, dtype)
    if checkpoint.config.quantization_format:
        return _load_codes(checkpoint, dtype)
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _build_config(
        directory / CONFIG_NAME,
        lambda: AutoConfig.from_pretrained(
            directory, trust_remote_code=False, attn_implementation=_ATTENTION
        ),
    )
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=config, trust_remote_code=False, **_model_options(dtype)
    )
    return model.eval()


def _build_config(path: Path, build: Callable[[], Any]) -> Any:
    """Return what ``build`` makes of the configuration in ``path``."""
    refusals: list[type[Exception]] = [AttributeError, LookupError, TypeError, ValueError]
    try:
        # What newer versions of transformers raise for a field of another type.
        from huggingface_hub.errors import StrictDataclassError
    except ImportError:
        pass
    else:
        refusals.append(StrictDataclassError)
    try:
        return build()
    except tuple(refusals) as err:
        raise CheckpointError(
            f"{path} is refused by its configuration class: {err}. Restore the file from the "
            "model's original repository."
        ) from err


def _check_rope_is_known(checkpoint: Checkpoint) -> None:
    """Say which transformers to install where the installed one fails on llama3 scaling."""
    import transformers

    scaling = checkpoint.config.rope_scaling
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    is_llama3 = scaling is not None and scaling.rope_type == "llama3"
    if is_llama3 and version < LLAMA3_ROPE_SINCE:
        wanted = ".".join(str(part) for part in LLAMA3_ROPE_SINCE)
        raise CheckpointError(
            f"{checkpoint.directory}: config.json has rope_scaling of type llama3, which "
            f"transformers {wanted} and newer read; transformers {transformers.__version__} is "
            f"installed. Run: pip install 'transformers>={wanted}'"
        )


def _dtype_option(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the option under the name that the installed transformers wants."""
    import transformers

    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    return {name: dtype}


def _model_options(dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of every load from a directory."""
    options = {"use_safetensors": True, "attn_implementation": _ATTENTION}
    return {**options, **_dtype_option(dtype)}


def _load_own_code(directory: Path, dtype: torch.dtype) -> Any:
    """Load through ``config_vacc.json``, as the compiler does.

    The classes are named here. ``trust_remote_code=True`` would run whatever file the directory's
    ``auto_map`` names, and its ``custom_generate/generate.py``.
    """
    check_source_files(directory)
    config_class = _source_module("configuration_qwen2_vacc").Qwen2Config
    model_class = _source_module("modeling_qwen2_vacc").Qwen2ForCausalLM
    config = _build_config(
        directory / VACC_CONFIG_NAME,
        lambda: config_class.from_pretrained(directory, _configuration_file=VACC_CONFIG_NAME),
    )
    model = model_class.from_pretrained(directory, config=config, **_model_options(dtype))
    return model.eval()


def _load_codes(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Build transformers' own class without weights, swap the linears, read our tensors into it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {k: v for k, v in checkpoint.config.raw.items() if k not in _GUARD_KEYS}
    path = checkpoint.directory / CONFIG_NAME
    config = _build_config(path, lambda: AutoConfig.for_model(**raw))
    config._attn_implementation = _ATTENTION
    with _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, **_dtype_option(dtype))
        _source_module("quantization_vacc").replace_linears(model, dtype=dtype)
    state, linears = dict[str, torch.Tensor](), checkpoint.config.linear_names()
    for name in checkpoint.config.expected_tensors():
        module = name.removesuffix(".weight")
        if module in linears:
            codes, scale = codes_from(
                checkpoint.config.quantization_format, checkpoint.read, module
            )
            state |= {name: codes, f"{module}.weight_scale": scale}
        else:
            state[name] = checkpoint.read(name).to(dtype)
    model.load_state_dict(state, strict=not checkpoint.config.tie_word_embeddings, assign=True)
    if checkpoint.config.tie_word_embeddings:
        model.tie_weights()
    held = (*model.named_parameters(), *model.named_buffers())
    left = [name for name, tensor in held if tensor.is_meta]
    if left:
        raise CheckpointError(
            f"{checkpoint.directory}: {', '.join(left[:10])} could not be filled with the "
            "installed transformers. Install the version that README names."
        )
    return model.eval()


def _source_module(name: str) -> ModuleType:
    """Import one of the three files from the package's own asset folder.

    They become the modules of one package, so that they find each other. transformers' own loader
    would copy a directory's files into the user's home first, which a container may not allow.
    """
    if _SOURCE_PACKAGE not in sys.modules:
        package = ModuleType(_SOURCE_PACKAGE)
        package.__path__ = [str(asset_dir("source_code"))]
        sys.modules[_SOURCE_PACKAGE] = package
    return importlib.import_module(f"{_SOURCE_PACKAGE}.{name}")


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters take no memory.

    Buffers are left alone: the rotary ones are in no checkpoint, and transformers 4.43 cannot
    compute them on the meta device.
    """

    def move(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter) -> Any:
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        handle.remove()


def eos_ids(model: Any, tokenizer: Tokenizer) -> list[int]:
    """Return every id that ends an answer, by the generation config and by the tokenizer."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    ids = set(stated if isinstance(stated, list) else [stated]) | {tokenizer.eos_id}
    return sorted(value for value in ids if value is not None)


def complete(
    model: Any,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Continue token prompts as one left-padded batch, greedily or by ``sampling``.

    The model's own generation config is replaced: only its end tokens are kept. transformers
    completes a config that is passed from the model's, and a repetition penalty or beams would
    choose other tokens than those asked for. The caller's random state is left as it was.

    Returns:
        the new ids of each prompt, up to and including the first that ends an answer.
    """
    from transformers import GenerationConfig

    ends = eos_ids(model, tokenizer)
    pad = ends[0] if ends else 0
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **_sampling_options(sampling),
    )
    width = max(len(prompt) for prompt in prompts)
    padded = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = getattr(model, "device", torch.device("cpu"))
    with torch.inference_mode(), _random_state(sampling, device):
        output = model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=model.generation_config,
        )
    answers = []
    for row in output[:, width:].tolist():
        stop = next((i + 1 for i, value in enumerate(row) if value in ends), len(row))
        answers.append(row[:stop])
    return answers


def _sampling_options(sampling: Sampling | None) -> dict[str, Any]:
    if sampling is None:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }


@contextmanager
def _random_state(sampling: Sampling | None, device: torch.device) -> Iterator[None]:
    """Seed torch within the block."""
    if sampling is None:
        yield
        return
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(sampling.seed)
        yield


def generate(directory: Path, *, prompt: str, max_new_tokens: int = 256) -> Answer:
    """Answer one chat turn greedily.

    Args:
        directory: a prepared or int8 directory.
        prompt: the user's words; the directory's chat template is applied.
        max_new_tokens: where to stop at the latest.

    Raises:
        UsageError: the prompt and the answer do not fit the model's context.
        CheckpointError: see ``load_model``; also where there is no chat template.
    """
    tokenizer = Tokenizer.from_dir(directory)
    ids = tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
    checkpoint = Checkpoint.open(directory)
    context = checkpoint.config.max_position_embeddings
    if len(ids) + max_new_tokens > context:
        raise UsageError(
            f"The prompt of {len(ids)} tokens and --max-new-tokens {max_new_tokens} are more than "
            f"the model's context of {context}. Ask for fewer tokens."
        )
    model = load_model(directory, dtype=activation_dtype(checkpoint))
    started = time.monotonic()
    (answer,) = complete(model, tokenizer, [ids], max_new_tokens=max_new_tokens)
    seconds = time.monotonic() - started
    finished = bool(answer) and answer[-1] in eos_ids(model, tokenizer)
    text = tokenizer.decode(answer[:-1] if finished else answer)
    return Answer(prompt, text, len(ids), len(answer), seconds, finished)


def activation_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return float32 for models up to three billion parameters, else bfloat16, to halve memory."""
    is_small = checkpoint.config.num_parameters() <= 3_000_000_000
    return torch.float32 if is_small else torch.bfloat16

"""``generation_config.json`` of a checkpoint: its ids and limits as every loader takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vacc_deploy.bounds import GENERATION_CONFIG_BYTES
from vacc_deploy.errors import CheckpointError, name_some
from vacc_deploy.json_files import read_json
from vacc_deploy.models.config import GENERATION_CONFIG_NAME
from vacc_deploy.models.settle import Applied, settle_generation

# What else shapes an answer in transformers, with the value that changes nothing.
_UNUSED: dict[str, Any] = {
    "assistant_model": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "cache_implementation": None,
    "compile_config": None,
    "custom_generate": None,
    "diversity_penalty": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_decoder_ids": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "min_p": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "penalty_alpha": 0,
    "prompt_lookup_num_tokens": None,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "top_h": None,
    "typical_p": 1,
    "watermarking_config": None,
}

if TYPE_CHECKING:
    from vacc_deploy.text.tokenizer import Tokenizer


def read_generation_config(
    directory: Path, vocab_size: int = 1 << 31
) -> tuple[dict[str, Any] | None, tuple[Applied, ...]]:
    """Return the settled values of ``generation_config.json``, and what was changed.

    Args:
        directory: a checkpoint directory; None is returned for one without the file.
        vocab_size: ids at or above it are left out.

    Raises:
        CheckpointError: the file is too large, not JSON, or no object.
    """
    path = directory / GENERATION_CONFIG_NAME
    if not path.is_file():
        return None, ()
    values = read_json(path, limit_bytes=GENERATION_CONFIG_BYTES, in_utf8=True)
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} holds {type(values).__name__}, expected a JSON object. Restore the file from "
            "the model's original repository."
        )
    settler = settle_generation(values, vocab_size, token_lookup(directory))
    return settler.values, tuple(settler.applied)


def describe_unused(values: Mapping[str, Any]) -> str:
    """Return a note on what ``generation_config.json`` asks for that ``generate`` does not do.

    Empty where there is nothing of the kind. Limits of length are not told: the caller sets one.
    """
    names = [
        name
        for name, neutral in _UNUSED.items()
        if values.get(name) not in (None, neutral) and values[name] not in ([], {}, False)
    ]
    if not names:
        return ""
    return (
        f"{GENERATION_CONFIG_NAME} also has {name_some(names)}. generate uses do_sample, "
        "temperature, top_p, top_k and repetition_penalty only, so answers may differ from those "
        "of a server."
    )


def token_lookup(directory: Path) -> Callable[[str], int | None]:
    """Return what finds the id of a token in a directory's tokenizer, which is read when asked."""

    @cache
    def read() -> Tokenizer | None:
        from vacc_deploy.text.tokenizer import Tokenizer

        with suppress(CheckpointError):
            return Tokenizer.from_dir(directory)
        return None

    def find(token: str) -> int | None:
        tokenizer = read()
        return tokenizer.token_id(token) if tokenizer else None

    return find

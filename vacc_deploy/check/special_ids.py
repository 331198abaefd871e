"""The rules for the ids of BOS, EOS and padding, which stand in three files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.config import CONFIG_NAME, GENERATION_CONFIG_NAME, ModelConfig
from vacc_deploy.problems import tokens
from vacc_deploy.problems.problem import Problem
from vacc_deploy.text.token_files import SettledTokens
from vacc_deploy.text.tokenizer import Tokenizer

_R1_BOS = "<｜begin▁of▁sentence｜>"


def find_id_problems(
    directory: Path, config: ModelConfig, settled: SettledTokens, tokenizer: Tokenizer
) -> Iterator[Problem]:
    """Yield where the files of a directory state different special ids."""
    generation: Mapping[str, Any] = {}
    # A generation config that cannot be read is a problem of its own.
    with suppress(CheckpointError):
        generation = read_generation_config(directory, config.vocab_size)[0] or {}
    files = {CONFIG_NAME: config.raw, GENERATION_CONFIG_NAME: generation}
    pad = settled.special.get("pad_token")
    own = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": None if pad is None else tokenizer.token_id(pad),
    }
    stops_at = _ids(generation, "eos_token_id") or _ids(config.raw, "eos_token_id")
    end = None
    # A template that fails is a problem of its own.
    with suppress(CheckpointError):
        end = tokenizer.answer_end_id()
    is_endless = end is not None and bool(stops_at) and end not in stops_at
    for name, values in files.items():
        for key, token_id in own.items():
            stated = _ids(values, key)
            if token_id is None or not stated or token_id in stated:
                continue
            if is_endless and token_id == end and stated == stops_at:
                continue  # told below
            yield _differs(config, tokenizer, f"{name}: {key}", (stated, token_id))
    if is_endless:
        place = GENERATION_CONFIG_NAME if "eos_token_id" in generation else CONFIG_NAME
        yield tokens.ENDLESS_ANSWERS.broken(
            f"an answer ends with the id {end}, but eos_token_id of {place} is {_show(stops_at)}",
            where=f"{place}: eos_token_id",
            got=_show(stops_at),
            expected=end,
        )


def _differs(
    config: ModelConfig,
    tokenizer: Tokenizer,
    where: str,
    ids: tuple[tuple[int, ...], int],
) -> Problem:
    """Return the problem of one id that a configuration states otherwise."""
    stated, token_id = ids
    rule = tokens.PAD_IDS if "pad" in where else tokens.SPECIAL_IDS
    # As published for DeepSeek-R1-Distill-Qwen: EOS stands in config.json as BOS too.
    if (
        where == f"{CONFIG_NAME}: bos_token_id"
        and config.model_type == "qwen2"
        and tokenizer.bos_token == _R1_BOS
        and stated == (tokenizer.eos_id,)
    ):
        rule = tokens.KNOWN_BOS
    name, key = where.split(": ")
    return rule.broken(
        f"{key} of {name} is {_show(stated)}, but {token_id} in the tokenizer",
        where=where,
        got=_show(stated),
        expected=token_id,
    )


def _ids(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the ids that a configuration states under a key, one or a list of them."""
    stated = values.get(key)
    found = stated if isinstance(stated, (list, tuple)) else [stated]
    return tuple(value for value in found if type(value) is int)


def _show(ids: tuple[int, ...]) -> str:
    return str(ids[0]) if len(ids) == 1 else str(list(ids[:10]))

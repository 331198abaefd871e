"""Configurations and messages at the edge of each bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from checkpoint_builders import build_config

from vacc_deploy import bounds
from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.cli.telling import cut_message
from vacc_deploy.errors import VaccDeployError
from vacc_deploy.models.parse import parse_config, read_object
from vacc_deploy.models.settle import settle_generation


def _read_config(tmp_path: Path, over: bool) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}".ljust(bounds.CONFIG_BYTES + over), "utf-8")
    read_object(path)


def _read_generation(tmp_path: Path, over: bool) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text("{}".ljust(bounds.GENERATION_CONFIG_BYTES + over), "utf-8")
    read_generation_config(tmp_path)


def _parse(change: Callable[[int], dict[str, object]], tmp_path: Path, over: bool) -> None:
    parse_config(build_config(model_type="llama", overrides=change(over)), where="config.json")


def _parse_window(tmp_path: Path, over: bool) -> None:
    changes = {"use_sliding_window": True, "sliding_window": bounds.CONTEXT_TOKENS + over}
    parse_config(build_config(overrides=changes), where="config.json")
    _parse(lambda over: {"max_position_embeddings": bounds.CONTEXT_TOKENS + over}, tmp_path, over)


def _settle_ends(tmp_path: Path, over: bool) -> None:
    ids = list(range(bounds.END_TOKENS + over))
    settle_generation({"eos_token_id": ids}, 5000, lambda token: None)


def _cut(tmp_path: Path, over: bool) -> None:
    text = "x" * (bounds.MESSAGE_CHARACTERS + over)
    if cut_message(text) != text:
        raise VaccDeployError("It was cut.")  # no reader: a message is shortened, not refused


def _heads(over: int) -> dict[str, object]:
    heads = bounds.NUM_HEADS + over
    return {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 2}


EDGES = {
    "CONFIG_BYTES": _read_config,
    "GENERATION_CONFIG_BYTES": _read_generation,
    "NUM_LAYERS": partial(_parse, lambda over: {"num_hidden_layers": bounds.NUM_LAYERS + over}),
    "NUM_HEADS": partial(_parse, _heads),
    "HEAD_SIZE": partial(_parse, lambda over: {"head_dim": bounds.HEAD_SIZE + 2 * over}),
    "HIDDEN_SIZE": partial(
        _parse, lambda over: {"hidden_size": bounds.HIDDEN_SIZE + 4 * over, "head_dim": 2}
    ),
    "INTERMEDIATE_SIZE": partial(
        _parse, lambda over: {"intermediate_size": bounds.INTERMEDIATE_SIZE + over}
    ),
    "VOCAB_SIZE": partial(_parse, lambda over: {"vocab_size": bounds.VOCAB_SIZE + over}),
    "CONTEXT_TOKENS": _parse_window,
    "CONFIG_NUMBER": partial(_parse, lambda over: {"rope_theta": bounds.CONFIG_NUMBER + over}),
    "END_TOKENS": _settle_ends,
    "MESSAGE_CHARACTERS": _cut,
}

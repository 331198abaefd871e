"""Read yarn's ``attn_factor`` in the other of its two ways; ``models.rope`` says what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vacc_deploy.checkpoint.manifest import name_source
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import UsageError
from vacc_deploy.models.config import CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import read_config_values
from vacc_deploy.models.rope import (
    ATTENTION_FACTOR,
    IGNORE,
    MULTIPLY,
    names_attn_factor,
    without_attn_factor,
)
from vacc_deploy.models.settle import Applied


def read_attn_factor(checkpoint: Checkpoint, how: str) -> Checkpoint:
    """Return a checkpoint whose ``attn_factor`` is read as the user says.

    Args:
        checkpoint: any; it was opened as ``multiply`` says.
        how: ``multiply``, as its makers mean it, or ``ignore``, as transformers reads it.

    Raises:
        UsageError: another word, or there is nothing to choose: its configuration says what is
            computed.
    """
    if how not in (MULTIPLY, IGNORE):
        raise UsageError(f"--attn-factor is {how!r:.80}, expected {MULTIPLY} or {IGNORE}.")
    path = checkpoint.directory / CONFIG_NAME
    if not names_attn_factor(read_config_values(checkpoint.directory)):
        raise UsageError(
            f"{path} has no yarn rule with attn_factor and without attention_factor, so there are "
            f"no two ways to read it. {_advise(checkpoint.directory)}"
        )
    if how == MULTIPLY:
        return checkpoint
    config = without_attn_factor(checkpoint.config)
    note = (
        f"{CONFIG_NAME}: attn_factor is ignored, as transformers does it: attention_factor "
        f"{_factor(config):g} is written, and attn_factor 1 beside it."
    )
    others = [rule for rule in checkpoint.applied if rule.rule != ATTENTION_FACTOR]
    applied = (*others, Applied(ATTENTION_FACTOR, note))
    return replace(checkpoint, config=config, applied=applied, is_config_changed=True)


def _advise(directory: Path) -> str:
    """Return what to do where a directory leaves nothing to choose, a sentence."""
    source = name_source(directory).removeprefix(": ")
    other = f", or give the directory that it was made from: {source}" if source else ""
    return f"Leave --attn-factor out{other}."


def read_alike(reference: Checkpoint, deployed: Checkpoint) -> Checkpoint:
    """Return the float model with its ``attn_factor`` read as what was made from it has it."""
    if not names_attn_factor(read_config_values(reference.directory)):
        return reference
    ignored = read_attn_factor(reference, IGNORE)
    return ignored if _factor(deployed.config) == _factor(ignored.config) else reference


def describe_factors(reference: Checkpoint, deployed: Checkpoint) -> str:
    """Return a sentence where two models differ in their attention factors; else empty."""
    mine, its = _factor(deployed.config), _factor(reference.config)
    if mine == its:
        return ""
    return (
        f"{deployed.directory} computes with yarn's attention factor {mine:g}, the float model is "
        f"read with {its:g}. The figures measure this difference too."
    )


def _factor(config: ModelConfig) -> float:
    return config.rope_scaling.attention_factor if config.rope_scaling else 1.0

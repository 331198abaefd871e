"""How tokens are drawn: by the generation config of a checkpoint and by what the user asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.models.config import GENERATION_CONFIG_NAME

if TYPE_CHECKING:
    import torch

# What DeepSeek advises for R1 models: at temperature 0 they repeat themselves without end.
DEFAULT_SAMPLING: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 0}
MAX_TEMPERATURE = 5.0
MAX_REPETITION_PENALTY = 10.0


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; ``top_k`` 0 sets no limit, and one ``seed`` draws the same tokens."""

    temperature: float
    top_p: float
    top_k: int
    seed: int
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class SamplingOptions:
    """What the user asks for; None leaves a value to the checkpoint's generation config.

    Attributes:
        greedy: always take the most probable token.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    greedy: bool = False

    def asked(self) -> dict[str, float | int]:
        """Return the values that are given."""
        values = asdict(self)
        del values["greedy"]
        return {name: value for name, value in values.items() if value is not None}


def choose_sampling(directory: Path, options: SamplingOptions) -> Sampling | None:
    """Return how a checkpoint's answers are drawn; None is greedy.

    It samples where the generation config says ``do_sample``, or the user gives a value. The
    user's values come first, then those of the generation config, then ``DEFAULT_SAMPLING``.

    Raises:
        UsageError: ``greedy`` together with a value of sampling.
        CheckpointError: ``generation_config.json`` is damaged, or a value is out of range.
    """
    asked = options.asked()
    if options.greedy:
        if asked:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
            raise UsageError(
                f"--greedy draws no tokens, so {names} cannot be used with it. Leave out one of "
                "the two."
            )
        return None
    stated = _read_stated(directory)
    do_sample = stated.get("do_sample", False)
    if not isinstance(do_sample, bool):
        path = directory / GENERATION_CONFIG_NAME
        raise _damaged(path, f"do_sample is {do_sample!r:.40}", "true or false")
    # A seed alone does not change how a model answers.
    if not do_sample and not asked.keys() - {"seed"}:
        return None
    penalty = stated.get("repetition_penalty", 1.0)
    if not _is_within(penalty, MAX_REPETITION_PENALTY):
        path = directory / GENERATION_CONFIG_NAME
        expected = f"above 0, to {MAX_REPETITION_PENALTY}"
        raise _damaged(path, f"repetition_penalty is {penalty!r:.40}", expected)
    values = {"seed": 0, **read_sampling(directory, but=asked), **asked}
    return Sampling(**values, repetition_penalty=float(penalty))


def describe_sampling(sampling: Sampling | None) -> str:
    """Return, for example, ``temperature 0.6, top-p 0.95, seed 0``; what sets no limit is left out.

    None is ``greedy``.
    """
    if sampling is None:
        return "greedy"
    parts = [f"temperature {sampling.temperature:g}", f"top-p {sampling.top_p:g}"]
    if sampling.top_k:
        parts.append(f"top-k {sampling.top_k}")
    if sampling.repetition_penalty != 1.0:
        parts.append(f"repetition penalty {sampling.repetition_penalty:g}")
    return ", ".join([*parts, f"seed {sampling.seed}"])


def read_sampling(directory: Path, but: Collection[str] = ()) -> dict[str, Any]:
    """Return ``temperature``, ``top_p`` and ``top_k`` of a checkpoint's generation config.

    ``DEFAULT_SAMPLING`` where it states none; a ``top_k`` of 0 is no limit. A temperature of 0
    means greedy, which is no sampling, so it counts as not stated.

    Args:
        directory: a checkpoint directory.
        but: names of values that are not wanted and not checked.

    Raises:
        CheckpointError: the file is damaged, or a value is out of range.
    """
    path = directory / GENERATION_CONFIG_NAME
    values = DEFAULT_SAMPLING | {k: v for k, v in _read_stated(directory).items() if k not in but}
    values["temperature"] = values["temperature"] or DEFAULT_SAMPLING["temperature"]
    for name, largest in (("temperature", MAX_TEMPERATURE), ("top_p", 1)):
        if not _is_within(values[name], largest):
            raise _damaged(path, f"{name} is {values[name]!r:.40}", f"above 0, to {largest}")
    top_k = values["top_k"]
    if type(top_k) is not int or top_k < 0:
        raise _damaged(path, f"top_k is {top_k!r:.40}", "an integer of 0 or more")
    return {
        "temperature": float(values["temperature"]),
        "top_p": float(values["top_p"]),
        "top_k": top_k,
    }


class NoProbabilitiesError(CheckpointError):
    """A model's scores are NaN or infinite, or every token has the same."""


def check_scores(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the scores [prompts, vocabulary]; for use as a logits processor of transformers.

    Greedily the first token would be taken of such scores, and nobody would know.

    Raises:
        NoProbabilitiesError: they tell nothing of the next token.
    """
    largest, smallest = scores.amax(-1), scores.amin(-1)
    # A comparison with NaN is false. -inf is a token that may not come.
    if not bool((largest.isfinite() & (largest > smallest)).all()):
        raise NoProbabilitiesError("no probabilities")  # its caller says of which directory
    return scores


@contextmanager
def probability_errors(directory: Path, advise: Callable[[], str]) -> Iterator[None]:
    """Turn what is said of NaN among the probabilities into a ``CheckpointError``."""
    try:
        yield
    except (RuntimeError, NoProbabilitiesError) as err:
        # What torch.multinomial says of NaN, which has no class of its own.
        if isinstance(err, RuntimeError) and "probability tensor" not in str(err):
            raise
        raise CheckpointError(
            f"{directory} gives probabilities that are infinite, undefined or all the same, so "
            f"it cannot write an answer. {advise()}"
        ) from err


def _read_stated(directory: Path) -> dict[str, Any]:
    """Return what the generation config states; a null counts as not stated."""
    stated, _ = read_generation_config(directory)
    return {name: value for name, value in (stated or {}).items() if value is not None}


def _is_within(value: Any, largest: float) -> bool:
    """Return whether ``value`` is a number above 0, to ``largest``."""
    # NaN and infinity are not in the range; True is no number here.
    return type(value) in (int, float) and 0 < value <= largest


def _damaged(path: Path, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {got}, expected {expected}. Restore the file from the model's original "
        "repository."
    )

"""Let the float model answer calibration prompts itself, once, and keep what it wrote.

A reasoning model is calibrated best on the kind of text it will write. The text stays a list of
ids: nothing here reads it.
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vacc_deploy import __version__
from vacc_deploy.calibration.answer_cache import AnswerCache, default_directory, hash_json
from vacc_deploy.checkpoint import Checkpoint, fingerprint_file, fingerprint_weights
from vacc_deploy.checkpoint.manifest import library_versions
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.json_files import read_json
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.generate import Sampling, complete
from vacc_deploy.reference.loader import activation_dtype, load_model
from vacc_deploy.text.tokenizer import (
    TEMPLATE_JSON_NAME,
    TEMPLATE_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    Tokenizer,
)

GENERATION_CONFIG_NAME = "generation_config.json"
BATCH_SIZE = 8
MAX_PROMPT_TOKENS = 4096
# What DeepSeek advises for R1 models: at temperature 0 they repeat themselves without end.
DEFAULT_TEMPERATURE, DEFAULT_TOP_P = 0.6, 0.95
MAX_TEMPERATURE = 5.0
MAX_CONFIG_BYTES = 1 << 20


class OwnAnswers:
    """Writes the answers of a checkpoint's float model, or takes them from the cache.

    The model is loaded when the first answer is missing in the cache, and as a whole.

    Attributes:
        batch_size: prompts answered at once.
        max_prompt_tokens: so that prompt and answer fit the model's context.
    """

    batch_size = BATCH_SIZE

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        seed: int,
        cache_dir: Path | None = None,
        device: str = "cpu",
        progress: Progress = SILENT,
    ) -> None:
        """Read the sampling settings and the cache.

        Args:
            checkpoint: of the float model.
            tokenizer: of the same directory.
            max_new_tokens: where an answer is cut off.
            seed: of the sampling.
            cache_dir: default ``default_directory``.
            device: where the model runs.
            progress: told of every batch.

        Raises:
            UsageError: there is no chat template, or no room for an answer in the context.
            CheckpointError: ``generation_config.json`` is damaged.
            OutputError: the cache cannot be written.
        """
        if not tokenizer.has_chat_template:
            raise UsageError(
                f"{checkpoint.directory} has no chat template, so the model cannot be asked for "
                "its own answers. Use --answers data, or restore the template's file."
            )
        context = checkpoint.config.max_position_embeddings
        self.max_prompt_tokens = min(context - max_new_tokens, MAX_PROMPT_TOKENS)
        if self.max_prompt_tokens < 1:
            raise UsageError(
                f"--max-answer-tokens {max_new_tokens} leaves no room for a prompt in the model's "
                f"context of {context}. Ask for shorter answers."
            )
        self._checkpoint, self._tokenizer, self._progress = checkpoint, tokenizer, progress
        self._max_new_tokens, self._seed, self._device = max_new_tokens, seed, device
        self._settings = read_sampling(checkpoint.directory)
        self._model: Any = None
        self._hash, self._answers, self._tokens = hashlib.sha256(), 0, 0
        self._cache = AnswerCache(
            cache_dir or default_directory(os.environ),
            self._identity(),
            vocab_size=checkpoint.config.vocab_size,
            max_tokens=max_new_tokens,
        )
        self._cache.load(progress)

    def write(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the ids of one answer for each prompt, with its end token unless cut off.

        Raises:
            CheckpointError: the model cannot be loaded, or writes no probabilities.
            OutputError: the cache cannot be written.
        """
        answers = self._cache.get(prompts)
        if answers is None:
            answers = self._generate([list(prompt) for prompt in prompts])
            self._cache.put(prompts, answers)
        self._answers += len(answers)
        self._tokens += sum(len(ids) for ids in answers)
        self._hash.update(hash_json(answers).encode("ascii"))
        return answers

    def describe(self) -> dict[str, Any]:
        """Return how the answers were written, for the report."""
        return {
            "written_by": "model",
            "identity_sha256": self._cache.digest,
            "answers_sha256": self._hash.hexdigest(),
            "answers": self._answers,
            "tokens": self._tokens,
            "max_new_tokens": self._max_new_tokens,
            "seed": self._seed,
            **self._settings,
        }

    def release(self) -> None:
        """Let go of the model: the memory is needed for what comes next."""
        if self._model is None:
            return
        self._model = None
        gc.collect()
        if torch.device(self._device).type == "cuda":
            torch.cuda.empty_cache()

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        if self._model is None:
            model = load_model(self._checkpoint.directory, dtype=activation_dtype(self._checkpoint))
            self._model = model.to(self._device)
        started = time.monotonic()
        # From the prompts too: a batch is the same whether those before it were in the cache.
        drawn = hash_json([self._seed, prompts])
        sampling = Sampling(**self._settings, seed=int(drawn[:15], 16))
        try:
            answers = complete(
                self._model,
                self._tokenizer,
                prompts,
                max_new_tokens=self._max_new_tokens,
                sampling=sampling,
            )
        except RuntimeError as err:
            if "probability tensor" not in str(err):
                raise
            raise CheckpointError(
                f"{self._checkpoint.directory} gives infinite or undefined probabilities, so it "
                "cannot write answers of its own. Check the weights with vacc-deploy verify, or "
                "use --answers data."
            ) from err
        count = sum(len(ids) for ids in answers)
        rate = count / max(time.monotonic() - started, 1e-9)
        note = f"{len(answers)} own answers, {count} tokens, {rate:.1f} tokens/s"
        self._progress.advance(0, note)
        return answers

    def _identity(self) -> dict[str, Any]:
        """Return everything that shapes an answer but the prompts."""
        directory = self._checkpoint.directory
        names = (
            *(CONFIG_NAME, VACC_CONFIG_NAME, GENERATION_CONFIG_NAME, TOKENIZER_NAME),
            *(TOKENIZER_CONFIG_NAME, TEMPLATE_NAME, TEMPLATE_JSON_NAME),
        )
        files = [directory / name for name in names if (directory / name).is_file()]
        return {
            "weights": fingerprint_weights(self._checkpoint),
            "files": {path.name: fingerprint_file(path) for path in files},
            "sampling": {**self._settings, "seed": self._seed},
            "max_new_tokens": self._max_new_tokens,
            "batch_size": self.batch_size,
            "device": torch.device(self._device).type,
            "dtype": str(activation_dtype(self._checkpoint)),
            "versions": {"vacc-deploy": __version__, **library_versions()},
        }


def read_sampling(directory: Path) -> dict[str, Any]:
    """Return ``temperature``, ``top_p`` and ``top_k`` of a checkpoint's generation config.

    Where it states none: 0.6, 0.95 and 0, which is no limit. A temperature of 0 means greedy,
    which is no sampling; it counts as none.

    Raises:
        CheckpointError: the file is damaged, or a value is out of range.
    """
    path = directory / GENERATION_CONFIG_NAME
    stated = read_json(path, limit_bytes=MAX_CONFIG_BYTES) if path.is_file() else {}
    if not isinstance(stated, dict):
        raise _damaged(path, f"it holds {type(stated).__name__}", "a JSON object")
    temperature = stated.get("temperature") or DEFAULT_TEMPERATURE
    top_p, top_k = stated.get("top_p"), stated.get("top_k")
    top_p = DEFAULT_TOP_P if top_p is None else top_p
    top_k = 0 if top_k is None else top_k
    if not (_is_number(temperature) and 0 < temperature <= MAX_TEMPERATURE):
        raise _damaged(
            path, f"temperature is {temperature!r:.40}", f"above 0, to {MAX_TEMPERATURE}"
        )
    if not (_is_number(top_p) and 0 < top_p <= 1):
        raise _damaged(path, f"top_p is {top_p!r:.40}", "above 0, to 1")
    if type(top_k) is not int or top_k < 0:
        raise _damaged(path, f"top_k is {top_k!r:.40}", "an integer of 0 or more")
    return {"temperature": float(temperature), "top_p": float(top_p), "top_k": top_k}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _damaged(path: Path, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {got}, expected {expected}. Restore the file from the model's original "
        "repository."
    )

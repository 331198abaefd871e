"""Let the float model answer calibration prompts itself, once, and save what it wrote.

A reasoning model is calibrated best on the kind of text it will write. The text stays a list of
ids: nothing here reads it.
"""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vacc_deploy import __version__
from vacc_deploy.calibration.answer_cache import AnswerCache, default_directory, hash_json
from vacc_deploy.checkpoint.fingerprint import fingerprint_file, fingerprint_weights
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import UsageError
from vacc_deploy.models.config import CONFIG_NAME, GENERATION_CONFIG_NAME
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME
from vacc_deploy.outputs.manifests import library_versions
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.generate import continue_prompts
from vacc_deploy.reference.loader import activation_dtype, load_model
from vacc_deploy.reference.sampling import Sampling, probability_errors, read_sampling
from vacc_deploy.text.files import TOKEN_FILES
from vacc_deploy.text.template_files import TEMPLATE_JSON_NAME, TEMPLATE_NAME
from vacc_deploy.text.tokenizer import Tokenizer

BATCH_SIZE = 8  # part of the cache's identity: other batches draw other answers
MAX_PROMPT_TOKENS = 4096
# The files beside the weights that change what a model answers.
_SHAPING_FILES = (
    CONFIG_NAME,
    VACC_CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    *TOKEN_FILES,
    TEMPLATE_NAME,
    TEMPLATE_JSON_NAME,
)


class OwnAnswers:
    """Writes the answers of a checkpoint's float model, or takes them from the cache.

    The model is loaded when the first answer is missing in the cache, and as a whole.

    Attributes:
        batch_size: prompts answered at once.
        max_prompt_tokens: longest prompt that fits the model's context together with an answer.
    """

    batch_size = BATCH_SIZE

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        seed: int,
        device: str,
        cache_dir: Path | None,
        progress: Progress = SILENT,
        load: Callable[..., Any] = load_model,
    ) -> None:
        """Read how the checkpoint samples, and prepare the cache.

        Args:
            checkpoint: the float model.
            tokenizer: tokenizer of the same directory.
            max_new_tokens: length at which an answer is cut off.
            seed: random seed for sampling.
            device: where the model runs.
            cache_dir: directory that saves the answers; None for ``default_directory``.
            progress: hears of every batch.
            load: loads the model.

        Raises:
            UsageError: there is no chat template, or the context has no space for an answer.
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
                f"--max-answer-tokens {max_new_tokens} leaves no space for a prompt in "
                f"the model's context of {context}. Ask for shorter answers."
            )
        self._checkpoint, self._tokenizer, self._device = checkpoint, tokenizer, device
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._progress, self._load, self._model = progress, load, None
        self._sampling = read_sampling(checkpoint.directory)
        self._hash, self._num_answers, self._num_tokens = hashlib.sha256(), 0, 0
        self._cache = AnswerCache(
            cache_dir or default_directory(os.environ),
            self._identity(),
            vocab_size=checkpoint.config.vocab_size,
            max_tokens=max_new_tokens,
            progress=progress,
        )

    def write(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the ids of one answer for each prompt, with its end token unless cut off.

        The same prompts give the same answers.

        Raises:
            CheckpointError: the model cannot be loaded, or writes no probabilities.
            OutputError: the cache cannot be written.
        """
        # A batch is the unit: sampling draws for all of its rows together.
        answers = self._cache.get(prompts)
        if answers is None:
            answers = self._generate([list(prompt) for prompt in prompts])
            self._cache.put(prompts, answers)
        self._num_answers += len(answers)
        self._num_tokens += sum(len(ids) for ids in answers)
        # Over all batches in their order: equal figures mean the same answers.
        self._hash.update(hash_json(answers).encode("ascii"))
        return answers

    def describe(self) -> dict[str, Any]:
        """Return how the answers were written, for the report."""
        return {
            "written_by": "model",
            "identity_sha256": self._cache.digest,
            "answers_sha256": self._hash.hexdigest(),
            "answers": self._num_answers,
            "tokens": self._num_tokens,
            "max_new_tokens": self._max_new_tokens,
            "seed": self._seed,
            **self._sampling,
        }

    def release(self) -> None:
        """Let go of the model: the memory is needed for what comes next."""
        if self._model is not None:
            self._model = None
            # Models hold references to themselves: counting alone does not free them.
            gc.collect()
            torch.cuda.empty_cache()  # does nothing where CUDA was not used

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        if self._model is None:
            dtype = activation_dtype(self._checkpoint)
            model = self._load(self._checkpoint, dtype=dtype)
            self._model = model.to(self._device)
        started = time.monotonic()
        # The seed depends on the prompts too: a batch is the same whether those before it were in
        # the cache.
        # 15 hex digits are 60 bits; torch.manual_seed takes 64.
        seed = int(hash_json([self._seed, prompts])[:15], 16)
        advice = "Check the weights with vacc-deploy verify, or use --answers data."
        with probability_errors(self._checkpoint.directory, lambda: advice):
            answers = continue_prompts(
                self._model,
                self._tokenizer,
                prompts,
                max_new_tokens=self._max_new_tokens,
                sampling=Sampling(**self._sampling, seed=seed),
            )
        count = sum(map(len, answers))
        rate = count / max(time.monotonic() - started, 1e-9)
        note = f"{len(answers)} own answers, {count} tokens, {rate:.1f} tokens/s"
        # 0: the job counts tokens of rows, which SourceTokens reports.
        self._progress.advance(0, note)
        return answers

    def _identity(self) -> dict[str, Any]:
        """Return everything that shapes an answer but the prompts."""
        directory = self._checkpoint.directory
        files = [directory / name for name in _SHAPING_FILES if (directory / name).is_file()]
        return {
            "weights": fingerprint_weights(self._checkpoint),
            "files": {path.name: fingerprint_file(path) for path in files},
            "sampling": {**self._sampling, "seed": self._seed},
            "max_new_tokens": self._max_new_tokens,
            "batch_size": self.batch_size,
            # Without its number: the answers of cuda:0 serve cuda:1 too.
            "device": torch.device(self._device).type,
            "dtype": str(activation_dtype(self._checkpoint)),
            "versions": {"vacc-deploy": __version__, **library_versions()},
        }

"""The model ``vacc`` of lm-evaluation-harness: any directory of ours, by our own decoder.

Importing this module registers it. The harness looks for no plugins, so that somebody has to:
``python -m vacc_deploy.evaluation`` does, and is its command otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

# The harness fills its list of models only while that is empty.
import lm_eval.models  # noqa: F401
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from vacc_deploy.checkpoint.changes import check_unchanged
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import UsageError
from vacc_deploy.evaluation.continuations import Continuation, score_continuations
from vacc_deploy.evaluation.walk import Walk, longest_prompt
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.activations import ACTIVATIONS, AUTO, choose_activations
from vacc_deploy.reference.generate import continue_prompts
from vacc_deploy.reference.loader import activation_dtype, load_model
from vacc_deploy.reference.sampling import Sampling
from vacc_deploy.reference.threads import threads_for
from vacc_deploy.text.tokenizer import Tokenizer

# What the harness itself takes where a task says nothing.
_MAX_NEW_TOKENS = 256
_BATCH_PROMPTS = 8


@register_model("vacc")
class VaccLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """A directory that ``prepare`` or ``quantize`` wrote, of any layout, or a float checkpoint."""

    def __init__(
        self,
        pretrained: str,
        *,
        max_length: int | None = None,
        activations: str = AUTO,
        progress: Progress = SILENT,
        **unused: Any,
    ) -> None:
        """Open a directory.

        Args:
            pretrained: the directory.
            max_length: tokens of a prompt; longer ones lose their beginning. Default: the model's
                context or window.
            activations: as ``verify`` takes it; it has no effect on generated text.
            progress: learns of every layer of every group of prompts.
            unused: what the harness tells every model, such as a batch size; the device is a CPU.

        Raises:
            CheckpointError: the directory is damaged.
            UsageError: another device, unknown activations, or no sound ``max_length``.
        """
        super().__init__()
        if unused.get("device") not in (None, "cpu"):
            raise UsageError(f"--device {unused['device']}: the model vacc runs on cpu only.")
        if activations not in ACTIVATIONS:
            expected = ", ".join(ACTIVATIONS)
            raise UsageError(f"activations={activations:.40}, expected one of {expected}.")
        if max_length is not None and not (isinstance(max_length, int) and max_length >= 1):
            raise UsageError(f"max_length={max_length!s:.40}, expected at least 1 token.")
        directory = Path(pretrained)
        self._checkpoint = Checkpoint.open(directory)
        self._tokens = Tokenizer.from_dir(directory)
        limit = longest_prompt(self._checkpoint.config)
        self.max_length = min(max_length or limit, limit)
        self._walk = Walk(self._checkpoint, choose_activations(activations, self._checkpoint))
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text; 0 where the tokenizer names none."""
        return self._tokens.eos_id or 0

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without a context: the BOS, else what ends a text."""
        return self.eot_token_id if self._tokens.bos_id is None else self._tokens.bos_id

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return str(self._checkpoint.directory.resolve()).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
        """Return the ids of a text; by default with a BOS where the model wants one."""
        wanted = self._tokens.adds_bos if add_special_tokens is None else add_special_tokens
        return self._tokens.encode(string, add_bos=wanted and self._tokens.bos_id is not None)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation in the form of the checkpoint's chat template."""
        return self._tokens.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return a text that stands for the template in the harness's records."""
        return "the checkpoint's own" if chat_template else None

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        """Return the likelihood of each continuation; a context too long loses its front."""
        cut = []
        for _, context, ids in requests:
            # As its own models do: the last of max_length + 1 tokens is not read.
            room = max(1, self.max_length + 1 - len(ids))
            cut.append(Continuation(tuple(context[-room:]), tuple(ids[: self.max_length])))
        found = score_continuations(self._walk, cut, self._progress)
        check_unchanged(self._checkpoint)
        for (texts, _, _), likelihood in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, tuple(likelihood))
        return [(likelihood.log_p, likelihood.is_greedy) for likelihood in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return log p of whole texts, in windows of ``max_length`` tokens."""
        windows, counts = list[tuple[None, list[int], list[int]]](), []
        for request in requests:
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            counts.append(len(windows) - before)
        scores = iter(self._loglikelihood_tokens(windows))
        totals = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @cached_property
    def _model(self) -> Any:
        return load_model(self._checkpoint, dtype=activation_dtype(self._checkpoint))

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes, each text up to the first of its stop sequences."""
        texts, places = [""] * len(requests), dict[str, list[int]]()
        for place, request in enumerate(requests):
            places.setdefault(repr(request.args[1]), []).append(place)
        # Requests that are drawn alike go together, those of like length in one batch.
        for group in places.values():
            group.sort(key=lambda place: len(requests[place].args[0]))
            for first in range(0, len(group), _BATCH_PROMPTS):
                batch = group[first : first + _BATCH_PROMPTS]
                contexts = [requests[place].args[0] for place in batch]
                options = requests[batch[0]].args[1]
                for place, text in zip(batch, self._write(contexts, options), strict=True):
                    texts[place] = text
                    self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return texts

    def _write(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        """Return the texts of one batch."""
        count = int(options.get("max_gen_toks", _MAX_NEW_TOKENS))
        if not 0 < count < self.max_length:
            raise UsageError(
                f"max_gen_toks is {count}, expected 1 to {self.max_length - 1}: the model sees "
                f"{self.max_length} tokens."
            )
        # A chat template may have written the BOS; encode puts no second one.
        prompts = [self.tok_encode(text)[count - self.max_length :] for text in contexts]
        with threads_for(self._checkpoint.config):
            written = continue_prompts(
                self._model,
                self._tokens,
                prompts,
                max_new_tokens=count,
                sampling=_read_sampling(options),
            )
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        texts = [self._tokens.decode(ids, skip_special_tokens=True) for ids in written]
        return [_cut(text, stops) for text in texts]


def _read_sampling(options: dict[str, Any]) -> Sampling | None:
    """Return how a task draws tokens; None is greedy."""
    temperature = float(options.get("temperature") or 0)
    if not options.get("do_sample") or not temperature:
        return None
    return Sampling(
        temperature=temperature,
        top_p=float(options.get("top_p", 1.0)),
        top_k=int(options.get("top_k", 0)),
        seed=int(options.get("seed", 0)),
    )


def _cut(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of the stop sequences in it."""
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text

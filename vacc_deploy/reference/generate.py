"""Let a loaded model write: one chat turn (``generate``), or many prompts in one batch.

Owns how tokens are chosen and where an answer ends; ``loader`` makes the model.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import UsageError
from vacc_deploy.reference.loader import activation_dtype, load_model
from vacc_deploy.results import format_seconds
from vacc_deploy.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; ``top_k`` 0 sets no limit, and one ``seed`` draws the same tokens."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """One chat turn.

    Attributes:
        text: what the model wrote, special tokens included.
        num_prompt_tokens: tokens of the prompt as the chat template writes it.
        finished: whether the model ended by itself, not at the limit.
    """

    prompt: str
    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    seconds: float
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    def to_text(self) -> str:
        """Return the answer, and a line of figures."""
        end = "" if self.finished else ", stopped at --max-new-tokens"
        rate = self.num_new_tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.text}\n\n[{self.num_new_tokens} tokens in {format_seconds(self.seconds)}, "
            f"{rate:.1f} tokens/s{end}]"
        )


def generate(directory: Path, *, prompt: str, max_new_tokens: int = 256) -> Answer:
    """Answer one chat turn greedily.

    Args:
        directory: a directory that ``prepare`` or ``quantize`` wrote, or a float checkpoint.
        prompt: the user's words; the directory's chat template is applied.
        max_new_tokens: the most tokens to write.

    Raises:
        UsageError: the prompt and the answer do not fit the model's context.
        CheckpointError: see ``load_model``; also raised where there is no chat template.
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
    model = load_model(checkpoint, dtype=activation_dtype(checkpoint))
    # Loading is not timed: tokens/s is the rate of writing alone.
    started = time.monotonic()
    (answer,) = continue_prompts(model, tokenizer, [ids], max_new_tokens=max_new_tokens)
    seconds = time.monotonic() - started
    # An answer that was cut by the limit lacks the end token.
    finished = bool(answer) and answer[-1] in eos_ids(model, tokenizer)
    text = tokenizer.decode(answer[:-1] if finished else answer)
    return Answer(prompt, text, len(ids), len(answer), seconds, finished)


def eos_ids(model: Any, tokenizer: Tokenizer) -> list[int]:
    """Return every id that ends an answer, by the generation config and by the tokenizer."""
    # One id, a list of ids, or None.
    stated = getattr(model.generation_config, "eos_token_id", None)
    ids = set(stated if isinstance(stated, list) else [stated]) | {tokenizer.eos_id}
    return sorted(value for value in ids if value is not None)


def continue_prompts(
    model: Any,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Continue token prompts as one left-padded batch, greedily or by ``sampling``.

    The model's own generation config is replaced; only its end tokens go into the new one. The
    caller's random state is left as it was.

    Returns:
        the new ids of each prompt, up to and including the first that ends an answer.
    """
    from transformers import GenerationConfig

    ends = eos_ids(model, tokenizer)
    # Any id will do: the mask hides it in front, and answers are cut behind their first end.
    pad = ends[0] if ends else 0
    drawing = asdict(sampling) if sampling else {}
    seed = drawing.pop("seed", 0)
    # transformers fills what a passed config leaves out from the model's own: its repetition
    # penalty or beams would choose other tokens than those asked for.
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        eos_token_id=ends or None,
        pad_token_id=pad,
        do_sample=sampling is not None,
        **drawing,
    )
    # Left-padded, all prompts end in one column and the new tokens begin in the next.
    width = max(len(prompt) for prompt in prompts)
    padded = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = getattr(model, "device", torch.device("cpu"))
    devices = [] if device.type == "cpu" else [device]
    with torch.inference_mode(), torch.random.fork_rng(devices, enabled=sampling is not None):
        if sampling is not None:
            torch.manual_seed(seed)
        output = model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=model.generation_config,
        )
    answers = []
    for row in output[:, width:].tolist():  # [prompts, new tokens]
        # A row that ended earlier than the longest one is padded: cut behind its first end.
        stop = next((i + 1 for i, value in enumerate(row) if value in ends), len(row))
        answers.append(row[:stop])
    return answers

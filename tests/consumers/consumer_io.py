"""What the checks of all consumers share: the request, greedy decoding, and the answer.

Runs in the environments of the consumers, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


def respond(
    consumer: str,
    load: Callable[[str], Any],
    go_on: Callable[[Any, dict[str, Any]], dict[str, Any]],
    others: tuple[str, ...] = (),
) -> None:
    """Answer the request that the first argument names.

    Args:
        consumer: the package whose version is told.
        load: takes the directory; whatever it raises is the consumer's refusal.
        go_on: takes what was loaded and the request, and returns ``tokens``. What it raises ends
            the script: no refusal, but a failure.
        others: packages whose versions are told too.
    """
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    try:
        loaded = load(request["directory"])
    except Exception as err:  # each consumer has its own exceptions
        _answer(consumer, others, {"refused": f"{type(err).__name__}: {err}"})
    else:
        _answer(consumer, others, go_on(loaded, request))


def _answer(consumer: str, others: tuple[str, ...], values: dict[str, Any]) -> None:
    """Print the one line that is read."""
    versions = {name: metadata.version(name) for name in others}
    version = metadata.version(consumer)
    sys.stdout.flush()
    line = {"consumer": consumer, "version": version, "versions": versions, **values}
    sys.stdout.write(f"\n{json.dumps(line)}\n")


def continue_all(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return the ``tokens`` of a model of transformers."""
    return {"tokens": greedy(model, request["prompts"], request["num_tokens"])}


def greedy(model: Any, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Return the most likely continuation of each prompt, whatever ends a text."""
    import torch

    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # Without a cache, whose interface changes from version to version.
        for _ in range(num_tokens):
            with torch.inference_mode():
                logits = model(input_ids=ids, use_cache=False).logits[0, -1]  # [vocab]
            ids = torch.cat((ids, logits.argmax().view(1, 1)), 1)
        answers.append(ids[0, len(prompt) :].tolist())
    return answers

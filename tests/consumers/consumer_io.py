"""What the checks of transformers' models share: the request, greedy decoding, and the answer.

Runs in the environments of the consumers, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def read_request() -> dict[str, Any]:
    """Return the request that the first argument names."""
    return json.loads(Path(sys.argv[1]).read_text("utf-8"))


def answer(consumer: str, others: tuple[str, ...] = (), **values: Any) -> None:
    """Print the one line that is read: the versions, and ``tokens`` or ``refused``."""
    versions = {name: metadata.version(name) for name in others}
    version = metadata.version(consumer)
    sys.stdout.flush()
    line = {"consumer": consumer, "version": version, "versions": versions, **values}
    sys.stdout.write(f"\n{json.dumps(line)}\n")


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

"""How likely a model finds given continuations of given contexts, many of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vacc_deploy.evaluation.pair import explain_nan
from vacc_deploy.evaluation.trees import Prompt
from vacc_deploy.evaluation.walk import Walk
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.next_tokens import score_targets
from vacc_deploy.reference.threads import threads_for
from vacc_deploy.reference.windows import check_ids


class Continuation(NamedTuple):
    """Token ids to score behind others; both at least one."""

    context: tuple[int, ...]
    ids: tuple[int, ...]


class Likelihood(NamedTuple):
    """What a model finds of a continuation.

    Attributes:
        log_p: sum of its tokens' log p, in nats.
        is_greedy: whether each of its tokens is the most likely one.
    """

    log_p: float
    is_greedy: bool


def score_continuations(
    walk: Walk, continuations: Sequence[Continuation], progress: Progress = SILENT
) -> list[Likelihood]:
    """Return the likelihood of each continuation, in their order.

    Args:
        walk: the model, and how prompts pass it.
        continuations: any number.
        progress: learns of every layer of every group of prompts.

    Raises:
        CheckpointError: one is longer than the model's context, or has an id that it lacks; or the
            model gives NaN.
    """
    check_ids(walk.checkpoint, [i for each in continuations for i in (*each.context, *each.ids)])
    # In the order of their ids those that begin alike are neighbours, and share what they can.
    order = sorted(range(len(continuations)), key=lambda i: continuations[i])
    asked = [continuations[i] for i in order]
    # The last token is predicted, never read.
    prompts = [Prompt((*each.context, *each.ids)[:-1], len(each.ids)) for each in asked]
    targets = torch.tensor([i for each in asked for i in each.ids])
    scores, tops = list[float](), list[bool]()
    progress.start("Scoring", walk.num_steps(prompts), "layers")
    with threads_for(walk.checkpoint.config):
        for states in walk.each_group(prompts, progress):
            part = targets[len(scores) : len(scores) + len(states)]
            with torch.inference_mode():
                log_p, is_top = score_targets(walk.checkpoint, states, part)
            if not torch.isfinite(log_p).all():
                raise explain_nan(walk.checkpoint, "a continuation")
            scores += log_p.tolist()
            tops += is_top.tolist()
    progress.finish()
    found, first = [Likelihood(0.0, True)] * len(asked), 0
    for place, each in zip(order, asked, strict=True):
        mine = slice(first, first + len(each.ids))
        found[place] = Likelihood(sum(scores[mine]), all(tops[mine]))
        first = mine.stop
    return found

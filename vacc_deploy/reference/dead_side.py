"""Say which of two models is dead, and by which tensors, where a comparison has found nothing."""

from __future__ import annotations

import math

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import advise, find_unsound
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.limits import guesses
from vacc_deploy.reference.next_tokens import NextTokenScores

_MAX_TENSORS = 3  # named of each side


def find_dead_sides(
    reference: Checkpoint,
    deployed: Checkpoint,
    scores: NextTokenScores,
    progress: Progress = SILENT,
) -> tuple[list[str], str]:
    """Read all weights of both models where the scores say that one of them knows nothing.

    Args:
        reference: the float checkpoint.
        deployed: the deployed checkpoint.
        scores: of their comparison.
        progress: learns of every byte read.

    Returns:
        a line for each side whose weights no model can work with, and what to do; two empty values
        where the scores or the weights are sound.
    """
    perplexities = (scores.perplexity_float, scores.perplexity_deployed)
    is_dead = any(guesses(p, reference.config.vocab_size) for p in perplexities)
    if math.isfinite(scores.mean_kl) and not is_dead:
        return [], ""
    lines, advice = [], ""
    for side, checkpoint in (("float", reference), ("deployed", deployed)):
        found = find_unsound(checkpoint, progress)
        if found.faults:
            more = len(found.faults) - _MAX_TENSORS
            faults = "; ".join(found.faults[:_MAX_TENSORS]) + (f"; and {more} more" * (more > 0))
            lines.append(f"the {side} model {checkpoint.directory} is damaged: {faults}")
            # What was made from a damaged model is damaged too: mend the first one.
            advice = advice or advise(checkpoint, found.files)
    return lines, advice

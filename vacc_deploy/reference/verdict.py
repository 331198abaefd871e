"""Judge what a comparison found: the failures of the verdict, and what to know or to do."""

from __future__ import annotations

from typing import NamedTuple

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.compare import Comparison
from vacc_deploy.reference.dead_side import find_dead_sides
from vacc_deploy.reference.limits import Limits, guesses
from vacc_deploy.reference.ranges import describe_overflows, describe_risk


class Verdict(NamedTuple):
    """What is not met, a line each, and notes on it."""

    failures: tuple[str, ...]
    notes: tuple[str, ...]


def judge(
    reference: Checkpoint,
    deployed: Checkpoint,
    found: Comparison,
    limits: Limits | None,
    progress: Progress = SILENT,
) -> Verdict:
    """Return the verdict on a comparison; without limits nothing is judged.

    Args:
        reference: the float checkpoint.
        deployed: the deployed checkpoint.
        found: what their comparison found.
        limits: what the scores must meet, or None.
        progress: learns of every byte that is read to explain a failure.
    """
    risk = describe_risk(found.ranges)
    notes = [risk] if risk else []
    if limits is None:
        return Verdict((), tuple(notes))
    beyond = describe_overflows(found.ranges)
    failures = limits.failures(found.scores, reference.config.vocab_size)
    if not failures:
        return Verdict(beyond, (*notes, *limits.notes(found.scores)))
    dead, advice = find_dead_sides(reference, deployed, found.scores, progress)
    notes.append(advice or _explain(reference, deployed, found, limits))
    if found.rounding:
        notes.append(
            "the inputs of the linears are rounded; --activations float judges the weights alone."
        )
    return Verdict((*failures, *beyond, *dead), tuple(notes))


def _explain(reference: Checkpoint, deployed: Checkpoint, found: Comparison, limits: Limits) -> str:
    """Return what to do about a failed comparison, a sentence for the notes."""
    if guesses(found.scores.perplexity_float, reference.config.vocab_size):
        return (
            f"the float model {reference.directory} cannot predict this text, so the comparison "
            "says nothing. Give a text of the kind that the model was trained on with --text, or "
            "the right float model with --reference."
        )
    again = "make the directory again" if limits.is_float else "quantize again with --calibration"
    return (
        f"if {deployed.directory} was not made from {reference.directory}, give the right float "
        "model with --reference. If the text is of a kind that the model never saw, give another "
        f"with --text. Else {again}, or set your own limits with --max-kl and --min-top1."
    )

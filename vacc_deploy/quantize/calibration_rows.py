"""Read the rows that a run calibrates on, with answers of the model's own where asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.options import OWN, QuantizeOptions
from vacc_deploy.reference.decoder import check_sequence_length
from vacc_deploy.solver.records import RTN
from vacc_deploy.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vacc_deploy.calibration.own_answers import OwnAnswers
    from vacc_deploy.calibration.rows import CalibrationRows


def read_calibration_rows(
    checkpoint: Checkpoint, options: QuantizeOptions, progress: Progress, *, dry_run: bool
) -> CalibrationRows | None:
    """Return the rows to calibrate on, None for rounding; a dry run writes no own answers."""
    if options.method == RTN:
        return None
    from vacc_deploy.calibration.rows import build_rows

    check_sequence_length(checkpoint.config, options.sequence_length)
    tokenizer = Tokenizer.from_dir(checkpoint.directory)
    writer = _answer_writer(checkpoint, tokenizer, options, progress, dry_run=dry_run)
    try:
        return build_rows(
            options.sources,
            tokenizer,
            num_samples=options.num_samples,
            sequence_length=options.sequence_length,
            seed=options.seed,
            vocab_size=checkpoint.config.vocab_size,
            evaluation_share=options.evaluation_share,
            writer=writer,
            progress=progress,
        )
    finally:
        if writer is not None:
            writer.release()


def _answer_writer(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    options: QuantizeOptions,
    progress: Progress,
    *,
    dry_run: bool,
) -> OwnAnswers | None:
    if options.answers != OWN:
        return None
    if dry_run:
        progress.warn(
            "A dry run writes no answers: the plan counts the data set's own, and no time for "
            "writing them."
        )
        return None
    from vacc_deploy.calibration.own_answers import OwnAnswers

    return OwnAnswers(
        checkpoint,
        tokenizer,
        max_new_tokens=options.max_answer_tokens,
        seed=options.seed,
        cache_dir=options.answers_cache,
        device=options.device,
        progress=progress,
    )

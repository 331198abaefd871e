"""The rows that a run calibrates on, read on rank 0 and shared with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.options import OWN, QuantizeOptions
from vacc_deploy.quantize.ranks import Ranks
from vacc_deploy.reference.decoder import check_sequence_length
from vacc_deploy.solver import RTN
from vacc_deploy.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows


def read_on_rank_0(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    progress: Progress,
    ranks: Ranks,
    *,
    dry_run: bool,
) -> CalibrationRows | None:
    """Return the rows on every rank; rank 0 alone reads text, and rounding needs none."""
    rows = None
    if ranks.rank == 0 and options.method != RTN:
        rows = read_calibration_rows(checkpoint, options, progress, dry_run=dry_run)
    return ranks.share(rows)


def read_calibration_rows(
    checkpoint: Checkpoint, options: QuantizeOptions, progress: Progress, *, dry_run: bool
) -> CalibrationRows:
    """Return the rows to calibrate on; a dry run writes no own answers."""
    from vacc_deploy.calibration.rows import build_rows

    check_sequence_length(checkpoint.config, options.sequence_length)
    tokenizer = Tokenizer.from_dir(checkpoint.directory)
    writer = None
    if options.answers == OWN and dry_run:
        progress.warn(
            "A dry run writes no answers: the plan counts the data set's own, and no time for "
            "writing them."
        )
    elif options.answers == OWN:
        from vacc_deploy.calibration.own_answers import OwnAnswers

        writer = OwnAnswers(
            checkpoint,
            tokenizer,
            max_new_tokens=options.max_answer_tokens,
            seed=options.seed,
            device=options.device,
            cache_dir=options.answers_cache,
            progress=progress,
        )
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

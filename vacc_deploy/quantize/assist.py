"""Let further processes calibrate along: the first one tells them what, and they write nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.calibration.rows import CalibrationRows
from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.errors import CheckpointError, UsageError, list_problems
from vacc_deploy.models.config import LAYER_LINEARS
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import UNCONTROLLED, RunControl
from vacc_deploy.quantize.calibrated import Carried, calibrate_layers
from vacc_deploy.quantize.compute import Compute, choose_compute
from vacc_deploy.quantize.identity import differences, identify
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.ranks import Ranks, check_shares


def check_ranks(checkpoint: Checkpoint, rows: CalibrationRows | None, ranks: Ranks) -> None:
    """Refuse processes that would have nothing to do.

    Raises:
        UsageError: rounding on several, or too many for the rows or for a linear.
    """
    if ranks.count == 1:
        return
    if rows is None:
        raise UsageError(
            "--method rtn is bound by reading and writing files, which further processes do not "
            f"speed up: run it in one instead of {ranks.count}."
        )
    smallest = min(checkpoint.config.linear_shape(name)[0] for name in LAYER_LINEARS)
    check_shares(ranks.count, rows.num_fit_rows, smallest)


def send_work(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    finished: int,
    ranks: Ranks,
) -> None:
    """Tell the other ranks, as the first, to calibrate along from the layer ``finished`` on."""
    if ranks.count == 1:
        return
    compute = choose_compute(options.device, options.compute_dtype)
    ranks.begin(
        {
            "identity": _shared_identity(checkpoint, options, compute),
            "shape": list(rows.tokens.shape),
            "num_held_out": rows.num_held_out,
            "finished": finished,
        }
    )
    ranks.broadcast(torch.from_numpy(rows.tokens).to(compute.device), 0)


def assist(
    checkpoint_dir: Path,
    *,
    options: QuantizeOptions,
    ranks: Ranks,
    control: RunControl = UNCONTROLLED,
) -> None:
    """Calibrate along with the first rank until all layers are done or a rank is asked to stop.

    Args:
        checkpoint_dir: as the first rank has it; may lie on another machine.
        options: of the run, with this rank's own device.
        ranks: this rank is not the first.
        control: may stop all ranks between two layers.

    Raises:
        CheckpointError: the directory is damaged here, or differs from the first rank's, as may
            versions and options.
        UsageError: the device is not there.
        QuantizationError: a weight or an activation is not finite.
        RankLostError: another rank is gone.
    """
    work = ranks.await_begin()
    if work is None:
        return
    checkpoint = Checkpoint.open(checkpoint_dir)
    compute = choose_compute(options.device, options.compute_dtype)
    _check_same(work["identity"], _shared_identity(checkpoint, options, compute), ranks.rank)
    finished = work["finished"]
    tokens = torch.empty(work["shape"], dtype=torch.int64, device=compute.device)
    ranks.broadcast(tokens, 0)
    layers = calibrate_layers(
        checkpoint,
        options,
        CalibrationRows(tokens.cpu().numpy(), work["num_held_out"], (), (), options.seed),
        # The output's directory may be on the first rank's machine only.
        spool_dir=Path(tempfile.gettempdir()),
        clock=PhaseClock(),
        carried=Carried(finished, None, lambda index: None) if finished else None,
        ranks=ranks,
    )
    with control.watch():
        for _ in layers:
            if ranks.agree(control.stop_signal()) is not None:
                return


def _shared_identity(
    checkpoint: Checkpoint, options: QuantizeOptions, compute: Compute
) -> dict[str, Any]:
    """Return what has to be the same on every rank; directories may have other names."""
    identity = identify(checkpoint, options, "", None, compute)
    return identity | {"compute dtype": str(compute.dtype).removeprefix("torch.")}


def _check_same(first: dict[str, Any], own: dict[str, Any], rank: int) -> None:
    different = differences(first, own, labels=("in process 0", f"in process {rank}"))
    if different:
        raise CheckpointError(
            f"Process {rank} has other inputs, options or versions than process 0:\n"
            f"{list_problems(different, limit=len(different))}\n"
            "Give every process the same files, options and installation."
        )

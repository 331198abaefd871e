"""What a run will need: memory by formula, time from a trial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.quantize.calibrated import solver_settings
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.file_time import rounding_seconds, writing_seconds
from vacc_deploy.quantize.memory import (
    CPU_LIBRARY_BYTES,
    CUDA_LIBRARY_BYTES,
    MAX_PENDING_LAYERS,
    calibrated_memory,
    rounding_memory,
    spooled_bytes,
)
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import Estimate
from vacc_deploy.quantize.trial import BATCHES, Trial, predict_seconds, run_trial
from vacc_deploy.quantize.workload import Workload
from vacc_deploy.results import format_bytes
from vacc_deploy.system import available_memory_bytes, num_cores, resident_memory_bytes

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows
    from vacc_deploy.progress import Progress


@dataclass(frozen=True)
class Plan:
    """A run that is planned.

    Attributes:
        checkpoint: the float weights.
        options: of the run.
        rows: the calibration tokens; None for rounding.
        compute: the device and the precision.
        output_bytes: of the weights in all formats.
        num_finished: layers that an interrupted run has left.
    """

    checkpoint: Checkpoint
    options: QuantizeOptions
    rows: CalibrationRows | None
    compute: Compute
    output_bytes: int
    num_finished: int = 0

    def estimate_memory(self) -> Estimate:
        """Return what the run will hold at most, of the memory that is free now."""
        is_cuda = self.compute.device.type == "cuda" and self.rows is not None
        libraries = CUDA_LIBRARY_BYTES if is_cuda else CPU_LIBRARY_BYTES
        runtime = resident_memory_bytes() + libraries
        if self.rows is None:
            return Estimate(rounding_memory(self.checkpoint.config, runtime))
        return Estimate(*self._memory_of(self._workload(), runtime))

    def spooled_bytes(self, num_ranks: int = 1, num_sharing: int = 1) -> int:
        """Return the bytes of the rows that will lie on the disk beside the output.

        Args:
            num_ranks: processes of the run; each has its share of the rows.
            num_sharing: those of them that share this machine's memory.
        """
        if self.rows is None:
            return 0
        return spooled_bytes(
            self._workload().share(num_ranks),
            device_free=self.compute.free_memory_bytes(),
            host_available=available_memory_bytes() // num_sharing,
        )

    def predict_time(self, seconds_so_far: float, progress: Progress) -> tuple[Estimate, str]:
        """Return the memory and the time, and why there is no time, else an empty text.

        Args:
            seconds_so_far: what the preparation took, which the run needs too.
            progress: told of the trial.

        Raises:
            QuantizationError: a weight or an activation of the trial is not finite.
        """
        memory = self.estimate_memory()
        prepared = {"preparation": seconds_so_far}
        if self.rows is None:
            parts = rounding_seconds(self.checkpoint, self.output_bytes)
            return replace(memory, seconds=prepared | parts), ""
        work = self._workload()
        problem = self._lack_of_memory(work.shorten(BATCHES))
        trial = None if problem else self._try(work, progress)
        if trial is None:
            return memory, problem or "a layer of the model does not fit the device"
        parts = predict_seconds(trial, work, num_carried=self.num_finished)
        files = self._file_seconds(trial, sum(parts.values()))
        return replace(memory, seconds=prepared | parts | {"reading and writing": files}), ""

    def _workload(self) -> Workload:
        assert self.rows is not None
        return Workload.of(self.checkpoint, self.options, self.rows, self.compute)

    def _memory_of(
        self, work: Workload, runtime_bytes: int
    ) -> tuple[dict[str, int], dict[str, int] | None]:
        free, available = self.compute.free_memory_bytes(), available_memory_bytes()
        return calibrated_memory(work, runtime_bytes, device_free=free, host_available=available)

    def _lack_of_memory(self, trial: Workload) -> str:
        """Return why not even the trial fits, else an empty text."""
        host, device = self._memory_of(trial, 0)
        where, needed, free = "memory", sum(host.values()), available_memory_bytes()
        device_free = self.compute.free_memory_bytes()
        if device is not None and device_free is not None:
            where, needed, free = "device memory", sum(device.values()), device_free
        if needed <= free:
            return ""
        return (
            f"one layer needs about {format_bytes(needed)} of {where}, and {format_bytes(free)} "
            "are free"
        )

    def _try(self, work: Workload, progress: Progress) -> Trial | None:
        """Return the timed trial, None where the device's memory was too small for it."""
        assert self.rows is not None
        tokens = torch.from_numpy(self.rows.tokens)
        settings = solver_settings(self.options)
        try:
            return run_trial(self.checkpoint, settings, work, tokens, progress=progress)
        except torch.cuda.OutOfMemoryError:
            return None

    def _file_seconds(self, trial: Trial, computing: float) -> float:
        """Return what reading and writing add to the seconds of computing.

        They go on beside it: on a CPU they take its cores' time, on another device none of its.
        """
        reading = trial.layer.read * self.checkpoint.config.num_hidden_layers
        writing = writing_seconds(self.output_bytes, num_writers=MAX_PENDING_LAYERS)
        if self.compute.device.type == "cpu":
            return reading / num_cores() + writing
        return max(0.0, reading + writing - computing)

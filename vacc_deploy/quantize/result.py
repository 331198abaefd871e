"""The record of a quantization: one entry per linear, totals, and how it reads on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.manifest import REPORT_NAME
from vacc_deploy.formats.layouts import LAYOUTS, VAMC
from vacc_deploy.reference.ranges import ActivationRange, audit_values, describe_risk
from vacc_deploy.results import command, format_bytes, format_pairs, format_seconds
from vacc_deploy.solver import GPTQ
from vacc_deploy.solver.records import LinearRecord

TIMING_NAME = "quantize_timing.json"


@dataclass(frozen=True)
class Estimate:
    """What a run will need, in parts by name; None for what was not predicted.

    Attributes:
        memory: bytes of the host.
        device_memory: bytes of the device; None also where that is the host.
        seconds: wall time.
    """

    memory: dict[str, int] | None = None
    device_memory: dict[str, int] | None = None
    seconds: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the sums and their parts for ``--json``."""
        seconds = self.seconds and {name: round(part, 3) for name, part in self.seconds.items()}
        memory, device = self.memory, self.device_memory
        return {
            "estimated_seconds": seconds and round(sum(seconds.values()), 3),
            "estimated_memory_bytes": memory and sum(memory.values()),
            "estimated_device_memory_bytes": device and sum(device.values()),
            "estimated_parts": {
                "seconds": seconds,
                "memory_bytes": memory,
                "device_memory_bytes": device,
            },
        }

    def to_pairs(self) -> list[tuple[str, object]]:
        """Return the lines of the plan."""
        pairs: list[tuple[str, object]] = []
        if self.seconds:
            pairs.append(("time", _describe_sum(self.seconds, format_seconds)))
        if self.memory:
            pairs.append(("memory", _describe_sum(self.memory, format_bytes)))
        if self.device_memory:
            pairs.append(("device memory", _describe_sum(self.device_memory, format_bytes)))
        return pairs


def _describe_sum(parts: Mapping[str, float], show: Callable[[float], str]) -> str:
    """Return a sum and its parts, the largest first; parts below a hundredth are left out."""
    total = sum(parts.values())
    shown = sorted(parts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} {show(part)}" for name, part in shown if part >= total / 100)
    return f"about {show(total)} ({listed})"


@dataclass(frozen=True)
class QuantizeResult:
    """What ``quantize`` wrote, or would write (``dry_run``).

    Attributes:
        method: ``gptq`` or ``rtn``.
        formats: names of the layouts.
        linears: one record for each linear; none where nothing was written.
        audit: the largest activations of each layer, as the calibration saw them; none for ``rtn``.
        calibration: sources and numbers of tokens; None for ``rtn``.
        peak_device_memory_bytes: None where the device is the host.
        notes: by which rules the source is read, and on its place; in a dry run also what the run
            itself would be refused for.
        tensor_parallel: layout to the tensor-parallel sizes that vLLM can serve it with, where the
            layout decides them.
        seconds, peak_memory_bytes: None where nothing was quantized.
        already_finished: whether a finished output of the same run was found and verified.
    """

    model: str
    output_dir: Path
    method: str
    input_bytes: int
    output_bytes: int
    estimate: Estimate = Estimate()
    formats: tuple[str, ...] = (VAMC,)
    linears: tuple[LinearRecord, ...] = ()
    audit: tuple[ActivationRange, ...] = ()
    calibration: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tensor_parallel: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    dry_run: bool = False
    already_finished: bool = False

    @property
    def main_dir(self) -> Path:
        """The directory for vamc where there is one, else that of the first format."""
        if len(self.formats) == 1:
            return self.output_dir
        return self.output_dir / (VAMC if VAMC in self.formats else self.formats[0])

    @property
    def memory_bytes(self) -> int:
        """The bytes of the host that the run is predicted to hold at most; 0 if it was not."""
        return sum((self.estimate.memory or {}).values())

    def totals(self) -> dict[str, Any]:
        """Return counts and means over all linears."""
        num_gptq = sum(record.method == GPTQ for record in self.linears)
        # Not where rounding has no error at all: the ratio would divide by 0.
        compared = [
            (r.error_gptq, r.error_rtn)
            for r in self.linears
            if r.error_gptq is not None and r.error_rtn
        ]
        ratio = sum(g / r for g, r in compared) / len(compared) if compared else None
        return {
            "num_linears": len(self.linears),
            "num_gptq": num_gptq,
            "num_rtn": len(self.linears) - num_gptq,
            "num_saturated": sum(record.num_saturated for record in self.linears),
            "mean_error_ratio_gptq_to_rtn": ratio,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "model": self.model,
            "output_dir": str(self.output_dir),
            "dry_run": self.dry_run,
            "already_finished": self.already_finished,
            "method": self.method,
            "formats": list(self.formats),
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            **self.estimate.to_dict(),
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_device_memory_bytes": self.peak_device_memory_bytes,
            "totals": None if self.dry_run else self.totals(),
            "calibration": self.calibration,
            "warnings": list(self.warnings),
            "notes": list(self._all_notes()),
            "tensor_parallel": {name: list(sizes) for name, sizes in self.tensor_parallel.items()},
            "linears": [asdict(record) for record in self.linears],
            **audit_values(self.audit),
        }

    def to_text(self) -> str:
        """Return the summary, and the next command."""
        pairs: list[tuple[str, object]] = [
            ("method", self.method),
            ("weights", f"{format_bytes(self.input_bytes)} -> {format_bytes(self.output_bytes)}"),
        ]
        for name in self.formats:
            pairs.append(("format", f"{name}: {LAYOUTS[name].purpose}"))
        if self.calibration:
            pairs.append(("calibration", _describe_calibration(self.calibration)))
        if self.dry_run:
            pairs += self.estimate.to_pairs()
            text = (
                f"Would quantize {self.model} to int8 in {self.output_dir}\n{format_pairs(pairs)}"
            )
            return text + self._describe_notes()
        totals = self.totals()
        ratio = totals["mean_error_ratio_gptq_to_rtn"]
        if ratio is not None:
            pairs += [
                ("linears", f"{totals['num_gptq']} by gptq, {totals['num_rtn']} by rounding (rtn)"),
                ("output error", f"{ratio:.3f} relative to RTN, on held-out tokens"),
                ("codes cut", f"{totals['num_saturated']} at ±127"),
            ]
        if self.seconds is not None:
            pairs.append(("time", format_seconds(self.seconds)))
        if self.peak_memory_bytes is not None:
            peak = describe_peak(self.peak_memory_bytes, self.peak_device_memory_bytes)
            pairs.append(("peak memory", peak))
        pairs.append(("report", self.main_dir / REPORT_NAME))
        text = f"Quantized {self.model} to int8 in {self.output_dir}\n{format_pairs(pairs)}"
        if self.already_finished:
            text = f"Already finished; all file hashes verified.\n{text}"
        text += "".join(f"\nWarning: {warning}" for warning in self.warnings)
        text += self._describe_notes()
        return f"{text}\nNext: {command('verify', self.main_dir)}"

    def _describe_notes(self) -> str:
        return "".join(f"\nNote: {note}" for note in self._all_notes())

    def _all_notes(self) -> tuple[str, ...]:
        return (*self.notes, *audit_notes(self.audit))


def audit_notes(ranges: Sequence[ActivationRange]) -> list[str]:
    """Return a note where activations are at risk in float16."""
    risk = describe_risk(ranges)
    return [f"{risk} vacc-deploy verify --audit measures more of them."] if risk else []


def _describe_calibration(calibration: dict[str, Any]) -> str:
    sources = ", ".join(f"{s['kind']} {s['rows']} rows" for s in calibration["sources"])
    return f"{calibration['tokens']:,} tokens ({sources})"


def describe_peak(host_bytes: int, device_bytes: int | None) -> str:
    """Return the peak memory of the host and, where that is another, of the device."""
    device = "" if device_bytes is None else f", {format_bytes(device_bytes)} on the device"
    return f"{format_bytes(host_bytes)}{device}"


def summarize_layer(layer: int, records: Sequence[LinearRecord]) -> str:
    """Return one line on a finished layer for the progress display."""
    parts = [part for part in map(_compare_errors, records) if part]
    compared = f", output error relative to RTN: {', '.join(parts)}" if parts else ""
    return f"layer {layer}{compared}"


def summarize_linear(layer: int, linear: str, records: Sequence[LinearRecord]) -> str:
    """Return which linear is being quantized, and how those before it in the layer came out."""
    return f"{_short_name(linear)} of {summarize_layer(layer, records)}"


def _compare_errors(record: LinearRecord) -> str:
    """Return the error of GPTQ over that of RTN, ``q 0.52``; empty where none was measured."""
    if record.error_gptq is None or not record.error_rtn:
        return ""
    ratio = record.error_gptq / record.error_rtn
    was_rounded = "" if record.method == GPTQ else " (rounded)"
    return f"{_short_name(record.name)} {ratio:.2f}{was_rounded}"


def _short_name(linear: str) -> str:
    return linear.rsplit(".", 1)[-1].removesuffix("_proj")

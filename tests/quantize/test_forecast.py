"""What a dry run predicts: from measurements handed in, and from the real quantizer run on samples.

No test goes by a real time.
"""

import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoint_builders import write_checkpoint
from doubles import Recorder, StopAfter
from texts import contents, write_numbers

from vacc_deploy.calibration.rows import CalibrationRows
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import QuantizationError, StoppedError
from vacc_deploy.quantize import forecast as forecast_module
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.forecast import Plan
from vacc_deploy.quantize.layer_walk import num_float_rows
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import TIMING_NAME, Estimate
from vacc_deploy.quantize.run import quantize
from vacc_deploy.quantize.sample import (
    LONG_SECONDS,
    Measured,
    RowCounts,
    copy_seconds,
    run_sample,
    take_rows,
)
from vacc_deploy.solver.records import RTN

MUCH = 1 << 40
CPU = Compute(torch.device("cpu"), torch.float32, batch_tokens=64, kept_bytes=MUCH)
# Rows held out, fitted with a float stream and without one: 4, 16 and 20.
COUNTS = RowCounts(4, 20, 40)


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def plan(source):
    """A plan of 40 rows of 32 tokens; the model is 64 wide, its MLP 160."""
    tokens = np.random.default_rng(0).integers(0, 256, (40, 32))
    rows = CalibrationRows(tokens, 36, (0,) * 40, (), seed=0)
    options = QuantizeOptions("gptq", num_samples=40, sequence_length=32)
    return Plan(Checkpoint.open(source), options, rows, CPU, output_bytes=1 << 20)


@pytest.fixture
def gptq(tmp_path):
    sources = (CalibrationSource("text", write_numbers(tmp_path / "words.txt", 2000)),)
    return QuantizeOptions("gptq", sources, num_samples=10, sequence_length=32)


class FakeMeasure:
    """Takes 3 seconds a layer, one more for each ten passes of rows; a third of it forward."""

    def __init__(self, fixed=3.0, peak=0, device_peak=0):
        self.fixed, self.peak, self.device_peak, self.asked = fixed, peak, device_peak, []

    def __call__(self, rows, max_layers):
        self.asked.append((rows, max_layers))
        seconds = rows.num_passes / 10
        return Measured(
            rows,
            layer=self.fixed + seconds,
            start=seconds / 2,
            forward=seconds / 3,
            host_peak=self.peak,
            device_peak=self.device_peak,
        )


def predict(plan, tmp_path, measure):
    estimate, problem = plan.forecast(tmp_path, 1.5, measure=measure)
    assert problem == ""
    return estimate


# ---- rows of a sample -------------------------------------------------------------------------


def test_a_plan_counts_the_rows_of_each_kind(plan):
    # An eighth of the 36 fitted rows would be 5; the 8 * 64 tokens that are the least take 16.
    assert plan.row_counts() == COUNTS
    fast = replace(plan, options=replace(plan.options, effort="fast"))
    assert fast.row_counts() == RowCounts(4, 0, 40)
    assert replace(plan, rows=None).row_counts().num_passes == 0


def test_a_sample_has_the_kinds_of_rows_in_proportion():
    assert COUNTS.least_share(2) == 1 / 4
    assert COUNTS.scale(1 / 4) == RowCounts(1, 1 + 4, 1 + 4 + 5)
    assert COUNTS.scale(1 / 2) == RowCounts(2, 10, 20)
    assert COUNTS.scale(3.0) == COUNTS
    # One row at least of each kind there is, and none of one that there is not.
    assert COUNTS.scale(0.01) == RowCounts(1, 2, 3)
    assert RowCounts(4, 0, 40).scale(1 / 4) == RowCounts(1, 0, 10)
    assert RowCounts(1, 9, 9).scale(1 / 2) == RowCounts(1, 5, 5)


def test_a_sample_fills_two_batches_where_there_are_rows():
    assert COUNTS.least_share(16) == 32 / 40
    assert COUNTS.least_share(64) == 1
    assert RowCounts(0, 0, 0).least_share(4) == 1


def test_the_share_of_a_rank_is_that_of_the_first():
    assert COUNTS.share(1) == COUNTS
    assert COUNTS.share(3) == RowCounts(2, 7, 14)


# ---- time -------------------------------------------------------------------------------------


def test_time_is_on_the_line_through_two_samples(plan, tmp_path):
    measure = FakeMeasure()
    seconds = predict(plan, tmp_path, measure).seconds
    sizes = [rows for rows, _ in measure.asked]
    assert sizes[0] == sizes[1] == COUNTS.scale(1 / 4) and sizes[2] == COUNTS.scale(1 / 2)
    assert seconds["layers"] == pytest.approx(2 * (3 + 60 / 10))
    assert seconds["embedding"] == pytest.approx(60 / 10 / 2)
    assert seconds["preparation"] == 1.5
    assert seconds["copied tensors"] > 0


def test_a_fast_machine_runs_all_rows(plan, tmp_path):
    measure = FakeMeasure(fixed=-1.4)  # the small sample takes 0.1 seconds a layer
    seconds = predict(plan, tmp_path, measure).seconds
    assert measure.asked[-1][0] == COUNTS
    assert seconds["layers"] == pytest.approx(2 * (60 / 10 - 1.4))


def test_the_first_layer_of_all_is_done_again_unless_it_was_long(plan, tmp_path):
    for fixed, layers in ((3.0, [1, None, None]), (LONG_SECONDS, [1, None])):
        measure = FakeMeasure(fixed)
        predict(plan, tmp_path, measure)
        assert [count if count == 1 else None for _, count in measure.asked] == layers


def test_a_disturbed_small_sample_does_not_turn_the_line_down(plan, tmp_path):
    def measure(rows, max_layers):
        return Measured(rows, layer=5.0 if rows == COUNTS.scale(1 / 4) else 4.0)

    assert predict(plan, tmp_path, measure).seconds["layers"] == 2 * 4.0


def test_finished_layers_cost_their_forward_passes(plan, tmp_path):
    seconds = predict(replace(plan, num_finished=1), tmp_path, FakeMeasure()).seconds
    assert seconds["layers"] == pytest.approx(3 + 60 / 10)
    assert seconds["carrying finished layers"] == pytest.approx(60 / 10 / 3)


def test_inputs_of_down_beyond_the_limit_are_computed_twice(plan, tmp_path):
    inputs, hessian = 40 * 32 * 160 * 4, 160 * 160 * 4
    tight = replace(plan, compute=replace(CPU, kept_bytes=hessian + inputs // 4))
    seconds = predict(tight, tmp_path, FakeMeasure()).seconds
    # Gate and up are this share of a layer's products.
    gate_up = 2 * 160 * 64 / (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64)
    # Of the 60 passes 20 are in the float stream, where nothing is repeated.
    repeated = 0.75 * gate_up * (60 / 10 / 3) * 40 / 60
    assert seconds["layers"] == pytest.approx(2 * (3 + 60 / 10 + repeated))


# ---- memory -----------------------------------------------------------------------------------


def test_memory_is_the_samples_peak_with_the_rows_of_the_whole_run(plan, tmp_path):
    # Buffers of states, of float states, and behind attention, 64 wide; inputs of down, 160.
    row_bytes = ((40 + 20 + 40) * 64 + 40 * 160) * 32 * 4
    small = ((10 + 5 + 10) * 64 + 10 * 160) * 32 * 4
    memory = predict(plan, tmp_path, FakeMeasure(peak=MUCH)).memory
    assert memory["rows"] == row_bytes
    assert sum(memory.values()) == MUCH - small + row_bytes
    tight = replace(plan, compute=replace(CPU, kept_bytes=160 * 160 * 4 + 640))
    memory = predict(tight, tmp_path, FakeMeasure(peak=MUCH)).memory
    assert memory["rows"] == (40 + 20 + 40) * 64 * 32 * 4 + 640


def test_memory_on_a_device_has_the_rows_there(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (MUCH, MUCH))
    on_device = replace(plan, compute=replace(CPU, device=torch.device("cuda", 0)))
    measure = FakeMeasure(peak=MUCH, device_peak=2 * MUCH)
    estimate = predict(on_device, tmp_path, measure)
    row_bytes = ((40 + 20 + 40) * 64 + 40 * 160) * 32 * 4
    small = ((10 + 5 + 10) * 64 + 10 * 160) * 32 * 4
    assert estimate.device_memory == {"layers": 2 * MUCH - small, "rows": row_bytes}
    assert sum(estimate.memory.values()) == MUCH
    # Copying goes on beside the layers.
    assert estimate.seconds["copied tensors"] == 0


@pytest.mark.parametrize(
    ("available", "spooled"),
    [(MUCH, 0), (1_000_000, 327_680), (0, 327_680 + 163_840 + 327_680)],
)
def test_spooled_bytes_are_those_of_the_rows_that_find_no_memory(
    plan, monkeypatch, available, spooled
):
    """40 rows of 32 tokens, 20 of the float stream, 40 behind attention; 64 wide, four bytes.

    Half of what is left takes a buffer: of 1,000,000 bytes the first two.
    """
    monkeypatch.setattr(forecast_module, "available_memory_bytes", lambda: available)
    assert plan.spooled_bytes() == spooled


def test_a_rank_spools_its_share_of_the_rows(plan, monkeypatch):
    monkeypatch.setattr(forecast_module, "available_memory_bytes", lambda: 0)
    assert plan.spooled_bytes(num_ranks=3) == (14 + 7 + 14) * 32 * 64 * 4
    assert replace(plan, rows=None).spooled_bytes() == 0


def test_without_memory_for_a_sample_only_the_least_memory_is_given(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast_module, "available_memory_bytes", lambda: 4096)
    measure = FakeMeasure()
    estimate, problem = plan.forecast(tmp_path, 0.0, measure=measure)
    assert problem.startswith("one layer needs at least ")
    assert problem.endswith(" of memory, and 4.0 KiB are free")
    assert estimate.seconds is None and sum(estimate.memory.values()) > 4096
    assert measure.asked == []


def test_a_device_that_is_too_small_gives_memory_only(plan, tmp_path):
    def measure(rows, max_layers):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    estimate, problem = plan.forecast(tmp_path, 0.0, measure=measure)
    assert problem == "a layer of the model does not fit the device"
    assert estimate.seconds is None and estimate.memory["layers"] > 0


# ---- the samples themselves -------------------------------------------------------------------


def test_a_sample_runs_the_real_quantizer_and_leaves_nothing(plan, tmp_path, source):
    before, threads = contents(source), torch.get_num_threads()
    folder, recorder = tmp_path / "empty", Recorder()
    folder.mkdir()
    for rows, counts in ((plan.rows, COUNTS.scale(1 / 4)), (None, RowCounts(0, 0, 0))):
        options = plan.options if rows else QuantizeOptions(RTN)
        sample = run_sample(
            *(plan.checkpoint, options, rows, counts, 2), folder=folder, progress=recorder
        )
        assert sample.rows == counts and sample.layer > 0 and sample.host_peak > 0
        assert (sample.forward > 0) is (rows is not None)
    assert recorder.amount() == 2 + 2
    assert os.listdir(folder) == [] and contents(source) == before
    assert torch.get_num_threads() == threads
    assert not [t for t in threading.enumerate() if t.name.startswith(("sample", "layer-reader"))]


def test_a_sample_takes_the_first_rows_of_each_kind(plan):
    few = COUNTS.scale(1 / 4)
    options, rows = take_rows(plan.options, plan.rows, few)
    assert np.array_equal(rows.tokens, plan.rows.tokens[[*range(9), 36]])
    assert rows.num_fit_rows == 9
    # By itself the rule would carry all of so few rows through the float layers.
    config = plan.checkpoint.config
    assert num_float_rows(config, plan.options, 9, 1) == 10
    assert num_float_rows(config, options, 9, 1) == few.num_float == 5
    fast = replace(options, effort="fast")
    assert num_float_rows(config, fast, 9, 1) == 0


def test_a_model_of_one_layer_is_predicted_too(tmp_path, gptq):
    source = write_checkpoint(tmp_path / "single", num_layers=1)
    result = quantize(source, options=gptq, dry_run=True)
    assert result.estimate.seconds["layers"] > 0


def test_a_sample_names_a_weight_that_is_not_finite(tmp_path, gptq):
    weight = torch.ones(160, 64, dtype=torch.bfloat16)
    weight[3] = torch.nan
    broken = {"model.layers.0.mlp.up_proj.weight": weight}
    source = write_checkpoint(tmp_path / "model", extra_tensors=broken)
    with pytest.raises(QuantizationError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        quantize(source, options=gptq, dry_run=True)
    assert sorted(os.listdir(tmp_path)) == ["model", "words.txt"]


def test_copying_is_timed_on_a_piece_of_the_embedding(plan, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert copy_seconds(plan.checkpoint, 2, folder) > 0
    assert os.listdir(folder) == []


# ---- the dry run ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_dry_run_gives_time_and_memory_with_their_parts(source, gptq, method):
    options = gptq if method == "gptq" else QuantizeOptions(RTN)
    result = quantize(source, options=options, dry_run=True)
    values = json.loads(json.dumps(result.to_dict()))
    parts = values["estimated_parts"]
    assert values["estimated_seconds"] == pytest.approx(sum(parts["seconds"].values()), abs=0.01)
    assert values["estimated_memory_bytes"] == sum(parts["memory_bytes"].values()) > 1 << 20
    assert values["estimated_device_memory_bytes"] is parts["device_memory_bytes"] is None
    text = result.to_text()
    assert "\ntime    " in text and "\nmemory  " in text


def test_a_forecast_changes_no_byte_of_the_run_after_it(tmp_path, source, gptq):
    quantize(source, options=gptq, output=tmp_path / "plain")
    quantize(source, options=gptq, output=tmp_path / "after", dry_run=True)
    result = quantize(source, options=gptq, output=tmp_path / "after")
    values = result.to_dict()
    assert values["estimated_seconds"] is values["estimated_memory_bytes"] is None
    plain, after = (
        contents(tmp_path / name, without=(TIMING_NAME,)) for name in ("plain", "after")
    )
    assert plain == after


def test_a_dry_run_of_a_resumed_run_counts_its_finished_layers(source, gptq):
    with pytest.raises(StoppedError):
        quantize(source, options=gptq, control=StopAfter())
    result = quantize(source, options=gptq, resume=True, dry_run=True)
    assert "carrying finished layers" in result.estimate.seconds
    again = quantize(source, options=gptq, overwrite=True, dry_run=True)
    assert "carrying finished layers" not in again.estimate.seconds


def test_a_dry_run_says_in_one_warning_why_there_is_no_time(source, gptq, monkeypatch):
    monkeypatch.setattr(forecast_module, "available_memory_bytes", lambda: 4096)
    recorder = Recorder()
    result = quantize(source, options=gptq, dry_run=True, progress=recorder)
    assert result.estimate.seconds is None and result.memory_bytes > 0
    (warning,) = [line for line in recorder.warnings if "time" in line]
    assert warning.startswith("No time is predicted: one layer needs at least ")
    assert warning in result.to_dict()["warnings"]


def test_the_plan_lists_the_largest_parts_first():
    estimate = Estimate({"a": 1 << 20, "b": 5 << 20, "c": 1}, {"d": 3 << 30}, {"e": 61.0})
    assert estimate.to_pairs() == [
        ("time", "about 1 min 01 s (e 1 min 01 s)"),
        ("memory", "about 6.0 MiB (b 5.0 MiB, a 1.0 MiB)"),
        ("device memory", "about 3.0 GiB (d 3.0 GiB)"),
    ]
    assert Estimate().to_pairs() == [] and Estimate().to_dict()["estimated_memory_bytes"] is None

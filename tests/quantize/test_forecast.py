"""What a dry run predicts: from measurements handed in, and from the real quantizer run on samples.

No test goes by a real time.
"""

import json
import os
import sys
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
from vacc_deploy.errors import QuantizationError
from vacc_deploy.quantize import forecast as forecast_module
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.forecast import Plan
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import TIMING_NAME, Estimate
from vacc_deploy.quantize.run import quantize
from vacc_deploy.quantize.sample import LONG_SECONDS, MAX_LAYERS, Measured
from vacc_deploy.solver import RTN

MUCH = 1 << 40
CPU = Compute(torch.device("cpu"), torch.float32, batch_tokens=64, kept_bytes=MUCH)


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def plan(source):
    """A plan of 40 rows of 32 tokens, 4 held out, 16 with a float stream; 64 wide, the MLP 160."""
    tokens = np.random.default_rng(0).integers(0, 256, (40, 32))
    rows = CalibrationRows(tokens, 4, (0,) * 40, (), seed=0)
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

    def __call__(self, plan, max_layers):
        self.asked.append((plan, max_layers))
        _, num_float, num_rows = plan.row_counts()
        seconds = (num_float + num_rows) / 10
        return Measured(
            layer=self.fixed + seconds,
            start=seconds / 2,
            forward=seconds / 3,
            host_peak=self.peak,
            device_peak=self.device_peak,
        )


def predict(plan, measure):
    estimate, problem = plan.forecast(1.5, measure=measure)
    assert problem == ""
    return estimate


# ---- rows of a sample -------------------------------------------------------------------------


def test_a_share_has_the_first_rows_of_each_kind(plan):
    # An eighth of the 36 fitted rows would be 5; the 8 * 64 tokens that are the least take 16.
    assert plan.row_counts() == (4, 20, 40)
    assert plan.share(3).row_counts() == (2, 7, 14)
    assert np.array_equal(plan.share(3).rows.tokens, plan.rows.tokens[::3])
    fast = replace(plan, options=replace(plan.options, effort="fast"))
    assert fast.row_counts() == (4, 0, 40) and fast.share(4).row_counts() == (1, 0, 10)
    rounding = replace(plan, rows=None)
    assert rounding.row_counts() == rounding.share(4).row_counts() == (0, 0, 0)


def test_a_share_computes_as_many_inputs_of_down_twice(plan):
    inputs, hessian = 40 * 32 * 160 * 4, 160 * 160 * 4
    tight = replace(plan, compute=replace(CPU, kept_bytes=hessian + inputs // 5))
    assert tight.share(4).compute.kept_bytes == hessian + inputs // 5 // 4


# ---- time -------------------------------------------------------------------------------------


def test_time_is_on_the_line_through_two_samples(plan):
    measure = FakeMeasure()
    seconds = predict(plan, measure).seconds
    # The small sample has one row of the kind of which there are least.
    assert [sample.row_counts() for sample, _ in measure.asked] == [
        *(2 * [(1, 5, 10)]),
        (2, 10, 20),
    ]
    assert [most for _, most in measure.asked] == [1, MAX_LAYERS, MAX_LAYERS]
    assert seconds["layers"] == pytest.approx(2 * (3 + 60 / 10))
    assert seconds["embedding"] == pytest.approx(60 / 10 / 2)
    assert seconds["preparation"] == 1.5
    assert seconds["copied tensors"] > 0


def test_a_small_sample_fills_two_batches_and_a_large_one_of_a_fast_machine_is_all(plan):
    measure = FakeMeasure(fixed=-1.9)  # the small sample takes 0.1 seconds a layer
    wide = replace(plan, compute=replace(CPU, batch_tokens=10 * 32))
    seconds = predict(wide, measure).seconds
    assert [sample.row_counts()[2] for sample, _ in measure.asked] == [20, 20, 40]
    assert seconds["layers"] == pytest.approx(2 * (60 / 10 - 1.9))


def test_the_first_layer_of_all_is_done_again_unless_it_was_long(plan):
    measure = FakeMeasure(LONG_SECONDS)
    predict(plan, measure)
    assert [most for _, most in measure.asked] == [1, MAX_LAYERS]


def test_a_disturbed_small_sample_does_not_turn_the_line_down(plan):
    def measure(sample, max_layers):
        return Measured(layer=5.0 if len(sample.rows.tokens) == 10 else 4.0)

    assert predict(plan, measure).seconds["layers"] == 2 * 4.0


def test_finished_layers_cost_their_forward_passes(plan):
    seconds = predict(replace(plan, num_finished=1), FakeMeasure()).seconds
    assert seconds["layers"] == pytest.approx(3 + 60 / 10)
    assert seconds["carrying finished layers"] == pytest.approx(60 / 10 / 3)


# ---- memory -----------------------------------------------------------------------------------

# Buffers of states, of float states, and behind attention, 64 wide; inputs of down, 160.
ROW_BYTES = ((40 + 20 + 40) * 64 + 40 * 160) * 32 * 4


def test_memory_is_the_samples_peak_with_the_rows_of_the_whole_run(plan):
    memory = predict(plan, FakeMeasure(peak=MUCH)).memory
    assert memory["rows"] == ROW_BYTES
    assert sum(memory.values()) == MUCH - ROW_BYTES // 4 + ROW_BYTES
    tight = replace(plan, compute=replace(CPU, kept_bytes=160 * 160 * 4 + 640))
    memory = predict(tight, FakeMeasure(peak=MUCH)).memory
    assert memory["rows"] == (40 + 20 + 40) * 64 * 32 * 4 + 640


def test_memory_on_a_device_has_the_rows_there(plan, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (MUCH, MUCH))
    on_device = replace(plan, compute=replace(CPU, device=torch.device("cuda", 0)))
    estimate = predict(on_device, FakeMeasure(peak=MUCH, device_peak=2 * MUCH))
    assert estimate.device_memory == {"layers": 2 * MUCH - ROW_BYTES // 4, "rows": ROW_BYTES}
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
    if not available:
        assert plan.spooled_bytes(num_ranks=3) == (14 + 7 + 14) * 32 * 64 * 4
        assert replace(plan, rows=None).spooled_bytes() == 0


def test_a_device_that_is_too_small_gives_memory_only(plan):
    def measure(sample, max_layers):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    estimate, problem = plan.forecast(0.0, measure=measure)
    assert problem == "a layer of the model does not fit the device"
    assert estimate.seconds is None and estimate.memory["layers"] > 0


# ---- the dry run ------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(tmp_path, source, gptq):
    """It opens no file for writing, makes no directory, and leaves no thread and no setting."""
    seen, is_watched = set(), True

    def watch(event, arguments):
        if not is_watched or event not in ("open", "os.mkdir"):
            return
        if event == "os.mkdir" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.add(str(arguments[0]))

    before, threads = contents(tmp_path), torch.get_num_threads()
    sys.addaudithook(watch)  # for good: there is no way to take it back
    try:
        for options in (gptq, QuantizeOptions(RTN)):
            quantize(source, options=options, dry_run=True)
    finally:
        is_watched = False
    # What lets the peak of the memory begin again proves that the hook sees writing.
    assert "/proc/self/clear_refs" in seen
    assert not [path for path in seen if not path.startswith(("/proc/", "/dev/"))]
    assert contents(tmp_path) == before and torch.get_num_threads() == threads
    names = ("sample", "layer-reader", "rounding")
    assert not [t for t in threading.enumerate() if t.name.startswith(names)]


def test_a_model_of_one_layer_is_predicted_too(tmp_path, gptq):
    source = write_checkpoint(tmp_path / "single", num_layers=1)
    result = quantize(source, options=gptq, dry_run=True)
    assert result.estimate.seconds["layers"] > 0


def test_a_sample_names_a_weight_that_is_not_finite(tmp_path, gptq):
    weight = torch.linspace(-1, 1, 160 * 64).view(160, 64).bfloat16()
    weight[3] = torch.nan
    broken = {"model.layers.0.mlp.up_proj.weight": weight}
    source = write_checkpoint(tmp_path / "model", extra_tensors=broken)
    with pytest.raises(QuantizationError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        quantize(source, options=gptq, dry_run=True)


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
    stop = StopAfter()
    with pytest.raises(KeyboardInterrupt):
        quantize(source, options=gptq, progress=stop, kept=stop.kept)
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
    assert ("start", "Running samples 3 samples") not in recorder.events
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

"""What a quantization tells while it runs: layers, linears, their errors, speed and memory."""

import re

import pytest
from checkpoint_builders import write_checkpoint
from doubles import Recorder, StopAfter
from texts import read_json, write_numbers

from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import summarize_linear
from vacc_deploy.quantize.run import quantize
from vacc_deploy.quantize.shards import Pace
from vacc_deploy.solver.records import LinearRecord, QuantizedLayer

SHORT_NAMES = [name.removesuffix("_proj") for name in LAYER_LINEARS]


def of_layers(progress):
    """Return kind and text of the events of the layers' own job."""
    first = progress.events.index(("start", "Quantizing 3 layers"))
    return [(event[0], event[-1]) for event in progress.events[first + 1 : -1]]


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model", num_layers=3)


@pytest.fixture
def gptq(tmp_path):
    sources = (CalibrationSource("text", write_numbers(tmp_path / "words.txt", 2000)),)
    return QuantizeOptions("gptq", sources, num_samples=10, sequence_length=32)


def read_timing(output_dir):
    return read_json(output_dir / "quantize_timing.json")


def test_every_linear_is_told_and_every_layer_ends_with_speed_and_memory(source, gptq):
    progress = Recorder()
    quantize(source, options=gptq, progress=progress)
    events = of_layers(progress)
    assert [kind for kind, _ in events] == 3 * [*(7 * ["note"]), "advance"]
    assert [text.partition(" of layer 0")[0] for _, text in events[:7]] == SHORT_NAMES
    pattern = (
        r"layer 0, output error relative to RTN: q \d\.\d\d.*, down \d\.\d\d.*; "
        r"[\d,]+ tokens/s; peak memory [\d.]+ [MG]iB"
    )
    assert re.fullmatch(pattern, events[7][1])


def test_rounding_tells_layers_without_tokens(source):
    progress = Recorder()
    quantize(source, options=QuantizeOptions("rtn"), progress=progress)
    notes = [note for _, note in of_layers(progress)]
    assert len(notes) == 3
    assert all(re.fullmatch(r"layer \d; peak memory [\d.]+ [MG]iB", note) for note in notes)


def test_a_linear_is_told_with_the_errors_of_those_before_it():
    q = LinearRecord("model.layers.3.self_attn.q_proj", "gptq", 0.01, 0.02)
    k = LinearRecord("model.layers.3.self_attn.k_proj", "rtn", 0.03, 0.02)
    assert summarize_linear(3, "q_proj", []) == "q of layer 3"
    text = summarize_linear(3, "v_proj", [q, k])
    assert text == "v of layer 3, output error relative to RTN: q 0.50, k 1.50 (rounded)"


def test_tokens_per_second_leave_out_the_time_of_finished_layers():
    clock, progress = iter([0.0, 100.0, 104.0]), Recorder()
    pace = Pace(progress, 2000, choose_compute("cpu"), now=lambda: next(clock))
    pace.skip(1, "carried")
    pace.advance(QuantizedLayer(1, (), ()))
    assert progress.events[0] == ("skip", 1, "carried")
    assert progress.notes() == [progress.events[1][-1]]
    assert progress.notes()[0].startswith("layer 1; 500 tokens/s; peak memory ")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_resumed_run_tells_finished_layers_apart(source, gptq, method):
    options = gptq if method == "gptq" else QuantizeOptions("rtn")
    stop = StopAfter(2)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, options=options, progress=stop, kept=stop.kept)
    progress = Recorder()
    quantize(source, options=options, resume=True, progress=progress)
    skipped = [note for kind, note in of_layers(progress) if kind == "skip"]
    if method == "gptq":
        replayed = "already quantized; replaying it to restore the calibration state"
        assert skipped == [f"layer 0: {replayed}", f"layer 1: {replayed}"]
    else:
        assert skipped == ["2 layers were already quantized"]
    assert [kind for kind, _ in of_layers(progress)].count("advance") == 1


def test_the_seconds_of_every_linear_outlive_an_interruption(source, gptq):
    stop = StopAfter(1)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, options=gptq, progress=stop, kept=stop.kept)
    timing = read_timing(quantize(source, options=gptq, resume=True).output_dir)
    names = [linear_name(layer, name) for layer in range(3) for name in LAYER_LINEARS]
    assert list(timing["linear_seconds"]) == names
    assert all(0 <= seconds < 60 for seconds in timing["linear_seconds"].values())
    assert timing["peak_device_memory_bytes"] is None


def test_rounding_measures_no_single_linear(source):
    timing = read_timing(quantize(source, options=QuantizeOptions("rtn")).output_dir)
    assert timing["linear_seconds"] == {}

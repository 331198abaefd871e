"""What a quantization tells while it runs: layers, linears, their errors, speed and memory."""

import json
import re
import signal

import pytest
from checkpoint_builders import write_checkpoint

from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import StoppedError
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.progress import Progress, RunControl
from vacc_deploy.quantize import shards as layers_module
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import summarize_linear
from vacc_deploy.quantize.run import quantize
from vacc_deploy.solver.records import LinearRecord

SHORT_NAMES = [name.removesuffix("_proj") for name in LAYER_LINEARS]


class Recorder(Progress):
    def __init__(self):
        self.events = []

    def start(self, description, total, unit):
        self.events.append(("start", f"{description} {total} {unit}"))

    def advance(self, amount=1, note=""):
        self.events.append(("advance", note))

    def skip(self, amount=1, note=""):
        self.events.append(("skip", note))

    def note(self, text):
        self.events.append(("note", text))

    def of_layers(self):
        """Return the events of the layers' own job."""
        first = self.events.index(("start", "Quantizing 3 layers"))
        return self.events[first + 1 :]


class StopAfter(RunControl):
    """Asks to stop after some layers."""

    def __init__(self, count):
        self.left = count

    def stop_signal(self):
        self.left -= 1
        return None if self.left else signal.SIGTERM


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model", num_layers=3)


@pytest.fixture
def gptq(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{i * 7919 % 10007} words, " for i in range(2000)), "utf-8")
    sources = (CalibrationSource("text", path),)
    return QuantizeOptions("gptq", sources, num_samples=10, sequence_length=32)


def read_timing(output_dir):
    return json.loads((output_dir / "quantize_timing.json").read_text("utf-8"))


def test_every_linear_is_told_and_every_layer_ends_with_speed_and_memory(source, gptq):
    progress = Recorder()
    quantize(source, options=gptq, progress=progress)
    events = progress.of_layers()
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
    notes = [note for _, note in progress.of_layers()]
    assert len(notes) == 3
    assert all(re.fullmatch(r"layer \d; peak memory [\d.]+ [MG]iB", note) for note in notes)


def test_a_linear_is_told_with_the_errors_of_those_before_it():
    q = LinearRecord("model.layers.3.self_attn.q_proj", "gptq", 0.01, 0.02)
    k = LinearRecord("model.layers.3.self_attn.k_proj", "rtn", 0.03, 0.02)
    assert summarize_linear(3, "q_proj", []) == "q of layer 3"
    text = summarize_linear(3, "v_proj", [q, k])
    assert text == "v of layer 3, output error relative to RTN: q 0.50, k 1.50 (rounded)"


def test_tokens_per_second_leave_out_the_time_of_finished_layers(gptq, monkeypatch):
    clock = iter([0.0, 100.0, 104.0])
    monkeypatch.setattr(layers_module.time, "monotonic", lambda: next(clock))
    progress = Recorder()
    pace = layers_module._Pace(progress, gptq, 2000)
    pace.skip(1, "carried")
    pace.advance(layers_module.QuantizedLayer(1, (), ()))
    assert progress.events[0] == ("skip", "carried")
    assert progress.events[1][1].startswith("layer 1; 500 tokens/s; peak memory ")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_resumed_run_tells_finished_layers_apart(source, gptq, method):
    options = gptq if method == "gptq" else QuantizeOptions("rtn")
    with pytest.raises(StoppedError):
        quantize(source, options=options, control=StopAfter(2))
    progress = Recorder()
    quantize(source, options=options, resume=True, progress=progress)
    skipped = [note for kind, note in progress.of_layers() if kind == "skip"]
    if method == "gptq":
        carried = "finished before, the rows were carried through it"
        assert skipped == [f"layer 0: {carried}", f"layer 1: {carried}"]
    else:
        assert skipped == ["2 layers were finished before"]
    assert [kind for kind, _ in progress.of_layers()].count("advance") == 1


def test_the_seconds_of_every_linear_outlive_an_interruption(source, gptq):
    with pytest.raises(StoppedError):
        quantize(source, options=gptq, control=StopAfter(1))
    timing = read_timing(quantize(source, options=gptq, resume=True).output_dir)
    names = [linear_name(layer, name) for layer in range(3) for name in LAYER_LINEARS]
    assert list(timing["linear_seconds"]) == names
    assert all(0 <= seconds < 60 for seconds in timing["linear_seconds"].values())
    assert timing["peak_device_memory_bytes"] is None


def test_rounding_measures_no_single_linear(source):
    timing = read_timing(quantize(source, options=QuantizeOptions("rtn")).output_dir)
    assert timing["linear_seconds"] == {}

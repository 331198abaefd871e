"""The timed trial of ``--dry-run``, and what is predicted from it; no test goes by a real time."""

import json

import pytest
import torch
from checkpoint_builders import build_config, write_checkpoint

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import QuantizationError, StoppedError
from vacc_deploy.models.parse import parse_config
from vacc_deploy.progress import Progress, RunControl
from vacc_deploy.quantize import file_time, trial
from vacc_deploy.quantize import forecast as estimate_module
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_quantizer import SolverSettings
from vacc_deploy.quantize.memory import NUM_WRITERS
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import Estimate
from vacc_deploy.quantize.run import quantize
from vacc_deploy.quantize.trial import HELD_OUT, PLAIN, SHARED, LayerTimes, Trial
from vacc_deploy.quantize.workload import Workload

CONFIG = parse_config(build_config(num_layers=4), where="config.json")
# Products of gate and up in those of a layer.
REPEATED = 2 * 160 * 64 / (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64)
TIMES = LayerTimes(0.5, 8.0, {HELD_OUT: 0.25, SHARED: 4.0, PLAIN: 1.0}, 3.0)


class Counter(Progress):
    def __init__(self):
        self.layers, self.warnings = 0, []

    def advance(self, amount=1, note=""):
        self.layers += amount

    def warn(self, message):
        self.warnings.append(message)


class StopAtOnce(RunControl):
    def stop_signal(self):
        return 15


def make_work(kept_bytes=1 << 30, config=CONFIG, **changes):
    compute = Compute(torch.device("cpu"), torch.float32, batch_tokens=64, kept_bytes=kept_bytes)
    values = {"num_held_out": 2, "num_original": 6, "num_rows": 10} | changes
    return Workload(config, compute, 2, 32, **values)


def make_trial(source, now=None, **changes):
    checkpoint, counter = Checkpoint.open(source), Counter()
    work = make_work(config=checkpoint.config, **changes)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (work.num_rows, 32), generator=generator)
    clock = {"now": now} if now else {}
    result = trial.run_trial(checkpoint, SolverSettings(), work, tokens, progress=counter, **clock)
    return result, counter


# ---- what is predicted ------------------------------------------------------------------------


def test_only_what_depends_on_rows_grows_with_them():
    small, work = make_work(), make_work(num_held_out=4, num_original=12, num_rows=40)
    assert trial.rows_by_kind(small) == {HELD_OUT: 2, SHARED: 4, PLAIN: 4}
    assert trial.rows_by_kind(work) == {HELD_OUT: 4, SHARED: 8, PLAIN: 28}
    parts = trial.predict_seconds(Trial(small, TIMES, 0.5), work)
    assert parts == pytest.approx(
        {
            "embedding": 0.5 * 40 / 10,
            "forward": 4 * 8.0 * (40 + 12) / (10 + 6),
            "Hessians": 4 * (0.25 * 2 + 4.0 * 2 + 1.0 * 7),
            "solver": 4 * 3.0,
        }
    )


def test_the_same_rows_take_the_same_time():
    parts = trial.predict_seconds(Trial(make_work(), TIMES, 0.5), make_work())
    assert sum(parts.values()) == pytest.approx(4 * TIMES.total + 0.5)


def test_inputs_of_down_that_cannot_be_kept_are_computed_twice():
    inner_bytes = 10 * 32 * 160 * 4
    work = make_work(kept_bytes=160 * 160 * 4 + inner_bytes // 4)
    parts = trial.predict_seconds(Trial(make_work(), TIMES, 0.0), work)
    assert parts["forward"] == pytest.approx(4 * 8.0 * (10 * (1 + 0.75 * REPEATED) + 6) / 16)


def test_finished_layers_are_only_carried():
    parts = trial.predict_seconds(Trial(make_work(), TIMES, 0.0), make_work(), num_carried=3)
    assert parts["solver"] == 3.0 and parts["forward"] == 8.0
    assert parts["carrying finished layers"] == 3 * 8.0


def test_the_mean_is_taken_part_by_part():
    other = LayerTimes(1.5, 10.0, {HELD_OUT: 0.75, SHARED: 4.0, PLAIN: 2.0}, 5.0)
    mean = LayerTimes(1.0, 9.0, {HELD_OUT: 0.5, SHARED: 4.0, PLAIN: 1.5}, 4.0)
    assert trial.mean_times([TIMES, other]) == mean


# ---- what is timed ----------------------------------------------------------------------------


def test_a_trial_times_layers_with_some_rows_of_each_kind(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    shape = {"num_held_out": 4, "num_original": 12, "num_rows": 40}
    result, counter = make_trial(source, **shape)
    assert result.work == make_work(config=result.work.config, **shape).shorten(2)
    assert 1 < counter.layers <= trial.MAX_LAYERS
    assert result.layer.observed.keys() == {HELD_OUT, SHARED, PLAIN}
    assert all(seconds > 0 for seconds in result.layer.observed.values())
    assert result.layer.forward > 0 and result.layer.settled > 0 and result.embedding > 0


def test_a_trial_without_float_stream_observes_no_shared_rows(tmp_path):
    result, _ = make_trial(write_checkpoint(tmp_path / "model"), num_original=0)
    assert result.layer.observed[SHARED] == 0 and result.layer.observed[PLAIN] > 0
    parts = trial.predict_seconds(result, result.work)
    assert parts["Hessians"] == pytest.approx(2 * sum(result.layer.observed.values()))


def test_a_layer_that_takes_long_is_timed_once(tmp_path):
    ticks = iter(range(0, 10**9, 10))
    _, counter = make_trial(write_checkpoint(tmp_path / "model"), now=lambda: next(ticks))
    assert counter.layers == 1


def test_a_trial_takes_the_first_rows_of_each_kind():
    work = make_work(num_held_out=4, num_original=12, num_rows=40)
    assert trial._pick_rows(work.shorten(1), work) == [0, 1, 4, 5, 12, 13]


def test_a_trial_names_a_weight_that_is_not_finite(tmp_path):
    weight = torch.ones(160, 64, dtype=torch.bfloat16)
    weight[3] = torch.nan
    broken = {"model.layers.0.mlp.up_proj.weight": weight}
    source = write_checkpoint(tmp_path / "model", extra_tensors=broken)
    with pytest.raises(QuantizationError, match=r"layers\.0\.mlp\.up_proj\.weight in .*: row 3"):
        make_trial(source)


# ---- files ------------------------------------------------------------------------------------


def test_writing_is_hashed_by_as_many_cores_as_there_are_writers(monkeypatch):
    for cores, share in ((1, 1), (2, 2), (64, NUM_WRITERS)):
        monkeypatch.setattr(file_time, "num_cores", lambda cores=cores: cores)
        ticks = iter([0.0, 0.25])  # 16 MiB in a quarter of a second
        seconds = file_time.writing_seconds(1 << 30, now=lambda ticks=ticks: next(ticks))
        assert seconds == pytest.approx(16 / share + 0.5)


def test_rounding_is_predicted_from_one_piece(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model"))
    monkeypatch.setattr(file_time, "num_cores", lambda: 2)
    ticks = iter([0.0, 50.0, 50.0, 51.0, 60.0, 60.25])  # a slow first piece, one of a second
    parts = file_time.rounding_seconds(checkpoint, 1 << 30, now=lambda: next(ticks))
    weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64)
    assert parts["reading and rounding"] == pytest.approx(weights / (64 * 160) / 2)
    assert parts["hashing and writing"] == pytest.approx(8.5)


# ---- the plan ---------------------------------------------------------------------------------


@pytest.fixture
def gptq(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{i * 7919 % 10007} words, " for i in range(2000)), "utf-8")
    sources = (CalibrationSource("text", path),)
    return QuantizeOptions("gptq", sources, num_samples=10, sequence_length=32)


def test_a_dry_run_gives_time_and_memory_with_their_parts(tmp_path, gptq):
    source = write_checkpoint(tmp_path / "model")
    result = quantize(source, options=gptq, dry_run=True)
    values = json.loads(json.dumps(result.to_dict()))
    parts = values["estimated_parts"]
    assert list(parts["seconds"]) == [
        *("preparation", "embedding", "forward", "Hessians", "solver", "reading and writing")
    ]
    assert values["estimated_seconds"] == pytest.approx(sum(parts["seconds"].values()), abs=0.01)
    assert values["estimated_memory_bytes"] == sum(parts["memory_bytes"].values())
    assert values["estimated_device_memory_bytes"] is parts["device_memory_bytes"] is None
    text = result.to_text()
    assert "\ntime         about " in text and "\nmemory       about " in text
    real = quantize(source, options=gptq).to_dict()
    assert real["estimated_seconds"] is None and real["estimated_memory_bytes"] > 0


def test_a_dry_run_of_rounding_gives_a_time_too(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    result = quantize(source, options=QuantizeOptions("rtn"), dry_run=True)
    names = ["preparation", "reading and rounding", "hashing and writing"]
    assert list(result.estimate.seconds) == names


def test_a_dry_run_of_a_resumed_run_counts_its_finished_layers(tmp_path, gptq):
    source = write_checkpoint(tmp_path / "model")
    with pytest.raises(StoppedError):
        quantize(source, options=gptq, control=StopAtOnce())
    result = quantize(source, options=gptq, resume=True, dry_run=True)
    assert "carrying finished layers" in result.estimate.seconds
    again = quantize(source, options=gptq, overwrite=True, dry_run=True)
    assert "carrying finished layers" not in again.estimate.seconds


def test_a_dry_run_without_memory_for_a_layer_predicts_no_time(tmp_path, gptq, monkeypatch):
    monkeypatch.setattr(estimate_module, "available_memory_bytes", lambda: 4096)
    counter = Counter()
    source = write_checkpoint(tmp_path / "model")
    result = quantize(source, options=gptq, dry_run=True, progress=counter)
    assert result.estimate.seconds is None and result.memory_bytes > 0
    (warning,) = [line for line in counter.warnings if "time" in line]
    assert warning.startswith("No time is predicted: one layer needs about ")
    assert warning.endswith(" of memory, and 4.0 KiB are free")
    assert warning in result.to_dict()["warnings"]


def test_a_dry_run_outlives_a_device_that_is_too_small(tmp_path, gptq, monkeypatch):
    def fail(*arguments, **keywords):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(estimate_module, "run_trial", fail)
    source = write_checkpoint(tmp_path / "model")
    result = quantize(source, options=gptq, dry_run=True)
    assert result.estimate.seconds is None
    assert "a layer of the model does not fit the device" in result.warnings[-1]


def test_the_plan_lists_the_largest_parts_first():
    estimate = Estimate({"a": 1 << 20, "b": 5 << 20, "c": 1}, {"d": 3 << 30}, {"e": 61.0})
    assert estimate.to_pairs() == [
        ("time", "about 1 min 01 s (e 1 min 01 s)"),
        ("memory", "about 6.0 MiB (b 5.0 MiB, a 1.0 MiB)"),
        ("device memory", "about 3.0 GiB (d 3.0 GiB)"),
    ]

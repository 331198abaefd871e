"""The parts of the memory of a run, against numbers worked out by hand on a tiny model."""

import numpy as np
import pytest
import torch
from checkpoint_builders import build_config, write_checkpoint

from vacc_deploy.calibration.rows import CalibrationRows
from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.models.parse import parse_config
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.memory import (
    NUM_WRITERS,
    calibrated_memory,
    layer_weights,
    rounding_memory,
    spooled_bytes,
)
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.row_buffers import choose_place
from vacc_deploy.quantize.workload import Workload

# hidden 64, inner 160, q and o 64 x 64, k and v 32 x 64
CONFIG = parse_config(build_config(), where="config.json")
WEIGHTS = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64
MUCH = 1 << 40


def make_work(dtype=torch.bfloat16, kept_bytes=MUCH, **changes):
    compute = Compute(torch.device("cpu"), dtype, batch_tokens=64, kept_bytes=kept_bytes)
    values = {
        "config": CONFIG,
        "compute": compute,
        "weight_bytes": 2,
        "sequence_length": 32,
        "num_held_out": 2,
        "num_original": 6,
        "num_rows": 10,
    }
    return Workload(**(values | changes))


def host_memory(work):
    parts, device = calibrated_memory(work, 1000, device_free=None, host_available=MUCH)
    assert device is None
    return parts


def test_the_workload_counts_the_rows_of_each_kind(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", dtype=torch.float32))
    rows = CalibrationRows(np.zeros((40, 32), np.int64), 4, (0,) * 40, (), seed=0)
    compute = make_work().compute
    work = Workload.of(checkpoint, QuantizeOptions("gptq", sequence_length=32), rows, compute)
    # An eighth of the 36 fitted rows would be 5; the 8 * 64 tokens that are the least take 16.
    assert (work.num_held_out, work.num_original, work.num_rows) == (4, 4 + 16, 40)
    assert (work.num_plain, work.batch_rows, work.weight_bytes) == (20, 2, 4)
    fast = Workload.of(
        checkpoint, QuantizeOptions("gptq", sequence_length=32, effort="fast"), rows, compute
    )
    assert (fast.num_original, fast.num_plain, fast.with_down) == (0, 36, False)


def test_a_short_workload_keeps_some_rows_of_each_kind():
    small = make_work(num_held_out=4, num_original=20, num_rows=40).shorten(2)
    assert (small.num_held_out, small.num_original, small.num_rows) == (2, 2 + 4, 2 + 4 + 4)
    assert make_work(num_original=0).shorten(2).num_original == 0
    assert make_work().shorten(99) == make_work()


def test_gate_and_up_are_repeated_for_what_does_not_fit():
    inner_bytes, hessian_bytes = 10 * 32 * 160 * 2, 160 * 160 * 4
    assert make_work().repeated_share == 0
    quarter = make_work(kept_bytes=hessian_bytes + inner_bytes // 4)
    assert (quarter.kept_inner_bytes, quarter.repeated_share) == (inner_bytes // 4, 0.75)
    # Less than the Hessian alone needs leaves no room for inputs.
    tight = make_work(kept_bytes=hessian_bytes - 4)
    assert (tight.kept_inner_bytes, tight.repeated_share) == (0, 1)
    assert make_work(kept_bytes=0, with_down=False).repeated_share == 0


def test_memory_is_that_of_the_worst_moment():
    assert layer_weights(CONFIG) == WEIGHTS
    assert host_memory(make_work()) == {
        "runtime": 1000,
        "rows": (10 + 6 + 10) * 32 * 64 * 2,
        "weights of two layers": 2 * WEIGHTS * 2,
        "codes": 3 * WEIGHTS,
        # While the Hessian of down is factored: itself, permuted, the factor, and a panel.
        "weights in use": 3 * 160 * 64 * 2,
        "kept inputs of down": 10 * 32 * 160 * 2,
        "Hessians": 4 * 160 * 160 * 4,
    }


def test_memory_without_act_order_needs_no_permuted_copy():
    # The largest moment is then the solver's: three copies of the weight, the float one, codes.
    parts = host_memory(make_work(act_order=False))
    assert parts["Hessians"] == 160 * 160 * 4
    assert parts["solver"] == (4 * 4 + 2) * 64 * 160
    assert parts["held-out sample"] == 2 * 32 * (2 * 160 + 64) * 4


def test_memory_of_wide_inputs_beside_few_kept_ones():
    few = make_work(kept_bytes=160 * 160 * 4 + 640)
    with_all, with_few = host_memory(make_work()), host_memory(few)
    assert with_few["kept inputs of down"] == 640
    assert with_few | {"kept inputs of down": 0} == with_all | {"kept inputs of down": 0}


def test_memory_of_the_fast_effort_is_that_of_the_widest_other_stage():
    parts = host_memory(make_work(with_down=False, num_original=0))
    assert parts["rows"] == (10 + 10) * 32 * 64 * 2
    assert parts["kept inputs of down"] == 0
    assert parts["weights in use"] == (64 * 64 + 2 * 160 * 64) * 2
    assert parts["solver"] == (4 * 4 + 2) * 160 * 64


def test_memory_in_float32_has_copies_of_the_float_weights():
    # While down is observed nothing else is copied but down itself.
    parts = host_memory(make_work(torch.float32))
    assert parts["weights in use"] == (3 * 160 * 64 + 160 * 64) * 4
    assert host_memory(make_work(torch.float32, weight_bytes=4))["weights in use"] == 122880


def test_memory_on_a_device_leaves_little_to_the_host():
    work, rows = make_work(), (10 + 6 + 10) * 32 * 64 * 2
    host, device = calibrated_memory(work, 1000, device_free=MUCH, host_available=MUCH)
    assert host == {
        "runtime": 1000,
        "rows": 0,
        "codes": 3 * WEIGHTS,
        "a weight on its way": 160 * 64 * 2,
    }
    expected = host_memory(work)
    del expected["runtime"]
    assert device == expected
    host, device = calibrated_memory(work, 1000, device_free=40000, host_available=MUCH)
    assert (host["rows"], device["rows"]) == (rows, 0)
    host, device = calibrated_memory(work, 1000, device_free=40000, host_available=40000)
    assert (host["rows"], device["rows"]) == (0, 0)  # on the disk


@pytest.mark.parametrize(
    ("num_bytes", "place"), [(45, "device"), (46, "host"), (50, "host"), (51, "disk")]
)
def test_rows_take_the_fastest_place_with_room(num_bytes, place):
    assert choose_place(num_bytes, 100, 100) == place
    if place == "device":
        assert choose_place(num_bytes, None, 100) == "host"


@pytest.mark.parametrize(
    ("available", "spooled"),
    [(MUCH, 0), (100_000, 40_960), (0, 40_960 + 24_576 + 40_960)],
)
def test_spooled_bytes_are_those_of_the_rows_that_find_no_memory(available, spooled):
    """10 rows of 32 tokens, 6 of the float stream, 10 behind attention; 64 wide, two bytes."""
    assert spooled_bytes(make_work(), device_free=None, host_available=available) == spooled


def test_a_rank_spools_its_share_of_the_rows():
    work = make_work()
    shares = [work.share(count) for count in (1, 3)]
    assert shares[0] == work
    assert shares[1].num_rows == -(-work.num_rows // 3)
    assert shares[1].num_original == -(-work.num_original // 3)


def test_memory_of_rounding_is_a_few_layers_of_codes():
    # One for each writer, one that waits for them, one that is being rounded.
    expected = {"runtime": 1000, "codes": (NUM_WRITERS + 2) * WEIGHTS}
    assert rounding_memory(CONFIG, 1000) == expected

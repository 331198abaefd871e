"""What a record of an interrupted run may say."""

from dataclasses import asdict

import pytest
import torch

from vacc_deploy.quantize.record_checks import (
    find_problem,
    read_files,
    read_identity,
    read_linear,
    read_number,
    unpack_scale,
)
from vacc_deploy.quantize.records import pack_scale
from vacc_deploy.solver.records import LinearRecord

NAME, SCALE = "model.layers.0.mlp.up_proj", torch.tensor([1.0, 0.5], dtype=torch.float16)
LINEARS = {NAME: (2, 4)}
RECORDS = (LinearRecord(NAME, "rtn"),)


def test_a_scale_comes_back_as_it_was():
    assert torch.equal(unpack_scale(pack_scale(SCALE), 2), SCALE)
    assert not find_problem(RECORDS, {NAME: pack_scale(SCALE)}, LINEARS, needs_scales=True)
    assert not find_problem(RECORDS, {}, LINEARS, needs_scales=False)


@pytest.mark.parametrize(
    ("records", "scales", "problem"),
    [
        (RECORDS, {NAME: "x" * 7}, "a scale is no base64"),
        (RECORDS, {NAME: "\u00e9"}, "a scale is no base64"),
        (RECORDS, {NAME: pack_scale(SCALE[:1])}, "a scale has 2 bytes, expected 4"),
        (RECORDS, {NAME: pack_scale(SCALE * float("nan"))}, "a scale holds a value that is none"),
        (RECORDS, {NAME: pack_scale(-SCALE)}, "a scale holds a value that is none"),
        (RECORDS, {}, "it has scales of 0 linears"),
        ((), {NAME: pack_scale(SCALE)}, "it has records of 0 linears, expected 1"),
        (RECORDS * 2, {NAME: pack_scale(SCALE)}, "it has records of 2 linears, expected 1"),
    ],
)
def test_what_cannot_be_of_the_model_is_named(records, scales, problem):
    assert find_problem(records, scales, LINEARS, needs_scales=True).startswith(problem)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"name": "a" * 1000},
        {"method": "magic"},
        {"error_gptq": "0.1"},
        {"error_rtn": float("nan")},
        {"dampening_frac": [0.01]},
        {"correction": None},
        {"num_saturated": True},
        {"num_pinned": -1},
        {"colour": 1},
    ],
)
def test_an_impossible_record_of_a_linear_is_refused(change):
    values = asdict(RECORDS[0])
    assert read_linear(values) == RECORDS[0]
    with pytest.raises(ValueError) as caught:
        read_linear(values | change)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["1", None, -1, -(10**400), 10**400, float("nan"), True, []])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="a number is"):
        read_number(value)


@pytest.mark.parametrize("size", [-1, 10**400, "5", None, 1.5])
def test_a_file_of_an_impossible_size_is_refused(size):
    assert read_files({"a": [5, "0" * 64]}) == {"a": (5, "0" * 64)}
    with pytest.raises(ValueError, match="the file 'a' has the size"):
        read_files({"a": [size, "0" * 64]})


@pytest.mark.parametrize(
    "identity",
    [[], {"a\nb": 1}, {"a" * 1000: 1}, {"a": {}}, {"calibration sources 0 weight": "x"}],
)
def test_what_is_no_identity_is_refused(identity):
    with pytest.raises(ValueError, match="identity"):
        read_identity(identity)

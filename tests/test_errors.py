"""The sentence of an error is formed in one place, from the fields that several callers know."""

import pytest

from vacc_deploy.errors import (
    CheckpointError,
    QuantizationError,
    StoppedError,
    UsageError,
    VaccDeployError,
    add_sentence,
    list_problems,
)


def test_a_quantization_error_says_what_its_fields_hold():
    err = QuantizationError("holds NaN", row=4)
    assert str(err) == "row 4 holds NaN."
    err.locate("a.weight", first_row=16)
    assert str(err) == "a.weight: row 20 holds NaN." and (err.row, err.tensor) == (20, "a.weight")
    err.locate(file="/m", advice="Download it again.")
    assert str(err) == "a.weight in /m: row 20 holds NaN. Download it again."


def test_the_first_that_knows_the_place_is_right():
    err = QuantizationError("the activations hold NaN")
    err.locate("The inputs of q_proj")
    err.locate("model.layers.0", file="/m")
    assert err.tensor == "The inputs of q_proj" and err.row is None


def test_an_error_caught_as_the_base_has_a_hint():
    with pytest.raises(VaccDeployError) as caught:
        raise QuantizationError("holds NaN")
    assert caught.value.hint == ""


def test_exit_codes():
    assert [kind.exit_code for kind in (CheckpointError, UsageError)] == [1, 2]
    assert StoppedError("Stopped.", 15).exit_code == 143


def test_list_problems_is_sorted_and_cut():
    assert list_problems([]) == ""
    assert list_problems(["b", "a", "c"], limit=2) == "  - a\n  - b\n  - and 1 more"


def test_nothing_stands_behind_a_command_on_its_line():
    assert add_sentence("It is full.", "Free space.") == "It is full. Free space."
    assert add_sentence("Run:\n  mv a b", "Or wait.") == "Run:\n  mv a b\nOr wait."
    assert add_sentence("Run:\n  mv a b", "") == "Run:\n  mv a b"

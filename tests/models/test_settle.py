"""Values of the configuration files that no loader takes as they stand."""

import pytest

from vacc_deploy.models.settle import settle_config, settle_generation


def settle(**values):
    settler = settle_config({"vocab_size": 9, **values}, "bfloat16", lambda token: None)
    return settler.values, [applied.rule for applied in settler.applied]


@pytest.mark.parametrize("stated", [[7.0, 8], [7, 8.0], ["7", 8], [7, 8, 8], [7, 8, True]])
def test_ids_that_are_no_whole_numbers_become_such(stated):
    values, rules = settle(eos_token_id=stated)
    ids = values["eos_token_id"]
    assert ids == [7, 8] and {type(value) for value in ids} == {int} and rules == ["token-ids"]


@pytest.mark.parametrize("stated", [7, [7, 8]])
def test_whole_numbers_stay_as_they_are(stated):
    values, rules = settle(eos_token_id=stated)
    assert values["eos_token_id"] == stated and not rules


@pytest.mark.parametrize("stated", [[], {}, 16, "float8", "torch.float64"])
def test_a_dtype_that_no_loader_knows_becomes_that_of_the_weights(stated):
    values, rules = settle(torch_dtype=stated)
    assert values["torch_dtype"] == "bfloat16" and rules == ["dtype-name"]


@pytest.mark.parametrize("value", [float("nan"), [1, {"a": float("inf")}], -float("inf")])
def test_what_is_no_json_is_left_out_and_named(value):
    values, rules = settle(limits=value, rope_scaling={"factor": value})
    assert "limits" not in values and rules == ["not-a-number"]
    assert "rope_scaling" in values  # models.parse refuses it: without it the model is another
    settler = settle_generation({"limits": value, "top_p": value}, 9, lambda token: None)
    assert settler.values.keys() == {"top_p"}  # reference.sampling refuses it
    assert [applied.note for applied in settler.applied] == [
        "generation_config.json: left out limits: NaN and infinity are no JSON."
    ]


def test_a_long_key_is_cut_in_the_note():
    settler = settle_generation({"k" * 100_000: float("nan")}, 9, lambda token: None)
    assert len(settler.applied[0].note) < 200

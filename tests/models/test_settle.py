"""Values of the configuration files that no loader takes as they stand."""

import pytest

from vacc_deploy.models.settle import settle_config


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

"""How tokens are drawn: the generation config, the user's options, and what is refused."""

import json

import pytest

from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.reference.sampling import (
    Sampling,
    SamplingOptions,
    choose_sampling,
    describe_sampling,
    probability_errors,
    read_sampling,
)

R1 = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}


def state(directory, stated):
    (directory / "generation_config.json").write_text(json.dumps(stated), "utf-8")
    return directory


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, (0.6, 0.95, 0)),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, (0.7, 0.8, 20)),
        ({"temperature": 0, "top_p": 1}, (0.6, 1.0, 0)),
        ({"temperature": "0.7", "top_p": "1", "top_k": "20"}, (0.7, 1.0, 20)),
        ({"temperature": None, "top_k": None}, (0.6, 0.95, 0)),
    ],
)
def test_read_sampling(tmp_path, stated, expected):
    values = read_sampling(state(tmp_path, stated))
    assert (values["temperature"], values["top_p"], values["top_k"]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds list, expected a JSON object"),
        ('{"temperature": "hot"}', "temperature is 'hot', expected above 0, to 5.0"),
        ('{"temperature": -1}', "temperature is -1"),
        ('{"temperature": 1e999}', "temperature is inf"),
        ('{"top_p": 0}', "top_p is 0, expected above 0, to 1"),
        ('{"top_p": true}', "top_p is True"),
        ('{"top_k": 1.5}', "top_k is 1.5, expected an integer of 0 or more"),
    ],
)
def test_read_sampling_refuses_values_out_of_range(tmp_path, text, message):
    (tmp_path / "generation_config.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_sampling(tmp_path)


@pytest.mark.parametrize(
    ("stated", "options", "expected"),
    [
        (R1, {}, Sampling(0.6, 0.95, 0, 0)),
        (R1, {"seed": 7, "top_k": 5}, Sampling(0.6, 0.95, 5, 7)),
        (R1, {"temperature": 1.5, "top_p": 0.5}, Sampling(1.5, 0.5, 0, 0)),
        (R1 | {"repetition_penalty": 1.1}, {}, Sampling(0.6, 0.95, 0, 0, 1.1)),
        (R1, {"greedy": True}, None),
        # A temperature of 0 leaves nothing to draw; texts are what they say.
        (R1 | {"temperature": 0}, {}, None),
        (R1 | {"temperature": "0.0"}, {}, None),
        (R1 | {"temperature": 0}, {"temperature": 0.8}, Sampling(0.8, 0.95, 0, 0)),
        (
            R1 | {"do_sample": "true", "repetition_penalty": "1.1"},
            {},
            Sampling(0.6, 0.95, 0, 0, 1.1),
        ),
        (R1 | {"do_sample": 1}, {}, Sampling(0.6, 0.95, 0, 0)),
        (R1 | {"do_sample": "False"}, {}, None),
        # Without do_sample the model is greedy, unless the user gives a value of sampling.
        ({"temperature": 0.6}, {}, None),
        ({}, {"seed": 3}, None),
        ({"temperature": 0.7}, {"top_p": 0.9}, Sampling(0.7, 0.9, 0, 0)),
        ({}, {"temperature": 0.8}, Sampling(0.8, 0.95, 0, 0)),
        # What the user gives takes the place of a value that could not be used.
        (R1 | {"temperature": 700}, {"temperature": 0.8}, Sampling(0.8, 0.95, 0, 0)),
    ],
)
def test_the_user_comes_before_the_generation_config(tmp_path, stated, options, expected):
    assert choose_sampling(state(tmp_path, stated), SamplingOptions(**options)) == expected


def test_without_a_generation_config_it_is_greedy(tmp_path):
    assert choose_sampling(tmp_path, SamplingOptions()) is None


def test_greedy_with_a_value_of_sampling_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="--top-p, --seed cannot be used with it") as caught:
        choose_sampling(tmp_path, SamplingOptions(top_p=0.5, seed=1, greedy=True))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"do_sample": "yes"}, "do_sample is 'yes', expected true or false"),
        (R1 | {"repetition_penalty": 0}, "repetition_penalty is 0, expected above 0, to 10.0"),
    ],
)
def test_a_damaged_generation_config_is_named(tmp_path, stated, message):
    with pytest.raises(CheckpointError, match=message):
        choose_sampling(state(tmp_path, stated), SamplingOptions())


def test_describe_sampling_leaves_out_what_sets_no_limit():
    assert describe_sampling(None) == "greedy"
    assert describe_sampling(Sampling(0.6, 0.95, 0, 0)) == "temperature 0.6, top-p 0.95, seed 0"
    assert describe_sampling(Sampling(1.0, 1.0, 40, 3, 1.1)) == (
        "temperature 1, top-p 1, top-k 40, repetition penalty 1.1, seed 3"
    )


def test_probability_errors_takes_that_error_only(tmp_path):
    advised = pytest.raises(CheckpointError, match="undefined or all the same.* Look at it.")
    with advised, probability_errors(tmp_path, lambda: "Look at it."):
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
    with pytest.raises(RuntimeError, match="out of memory"), probability_errors(tmp_path, str):
        raise RuntimeError("out of memory")

"""The limits of ``verify``, and the sentences of its verdict."""

import math
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from texts import ROOT

from vacc_deploy.reference.limits import (
    IMPOSSIBLE_KL,
    MAX_KL,
    MAX_KL_FLOAT,
    MIN_TOP1,
    MIN_TOP1_FLOAT,
    Limits,
)
from vacc_deploy.reference.next_tokens import NextTokenScores

VOCAB_SIZE = 1000


def make_scores(**changes):
    """Return scores that meet every limit with room, but for ``changes``."""
    values = dict.fromkeys((field.name for field in fields(NextTokenScores)), 2.0)
    values |= {"mean_kl": 0.001, "kl_standard_error": 0.0001, "top1": 0.98, "num_tokens": 2000}
    return NextTokenScores(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"perplexity_float": math.nan}, ["float"]),
        ({"perplexity_deployed": math.inf}, ["deployed"]),
        ({"perplexity_float": math.nan, "perplexity_deployed": math.nan}, ["float", "deployed"]),
        ({}, ["float or deployed"]),
    ],
)
def test_failures_say_which_model_holds_no_number(changes, expected):
    scores = make_scores(mean_kl=math.nan, **changes)
    words = [f"the {name} model's output holds NaN or infinity" for name in expected]
    assert list(Limits(max_kl=math.inf).failures(scores, VOCAB_SIZE)) == words


def test_sound_scores_pass_the_defaults():
    scores = make_scores()
    assert Limits().failures(scores, VOCAB_SIZE) == ()
    assert Limits().notes(scores) == []
    assert Limits().describe(scores) == (
        "mean KL 0.001000 (limit 0.02), same top token 98.00% (limit 93.00%)."
    )


def test_the_defaults_have_room_for_chance_and_say_so():
    # 0.93 of 64 tokens has a standard error of 0.032.
    scores = make_scores(num_tokens=64, mean_kl=0.03, kl_standard_error=0.0034, top1=0.84)
    assert Limits().failures(scores, VOCAB_SIZE) == ()
    assert [note.partition(",")[0] for note in Limits().notes(scores)] == [
        "mean KL misses its limit by less than 3 standard errors",
        "same top token misses its limit by less than 3 standard errors",
    ]
    worse = make_scores(num_tokens=64, mean_kl=0.03, kl_standard_error=0.0033, top1=0.83)
    assert Limits().failures(worse, VOCAB_SIZE) == (
        f"mean KL is 0.030000, the limit is {MAX_KL:g}",
        f"same top token is 0.8300, the limit is {MIN_TOP1:g}",
    )


def test_the_room_does_not_grow_with_the_damage():
    scores = make_scores(mean_kl=2.1 * MAX_KL, kl_standard_error=1.0)
    assert Limits().failures(scores, VOCAB_SIZE) == ("mean KL is 0.042000, the limit is 0.02",)


def test_a_verdict_by_the_room_says_so():
    scores = make_scores(num_tokens=64, mean_kl=0.03, kl_standard_error=0.0034, top1=0.84)
    assert Limits().describe(scores) == (
        "mean KL 0.030000 (limit 0.02, with room for chance 0.0302), "
        "same top token 84.00% (limit 93.00%, with room for chance 83.43%)."
    )


def test_a_limit_that_was_given_is_exact():
    scores = make_scores(num_tokens=64, mean_kl=0.011, kl_standard_error=0.01, top1=0.94)
    limits = Limits(max_kl=0.01, min_top1=0.95)
    assert len(limits.failures(scores, VOCAB_SIZE)) == 2
    assert limits.notes(scores) == []
    assert Limits(max_kl=0.011, min_top1=0.94).failures(scores, VOCAB_SIZE) == ()


def test_a_limit_can_be_switched_off():
    scores, limits = make_scores(mean_kl=0.5, top1=0.0), Limits(math.inf, 0.0)
    assert limits.failures(scores, VOCAB_SIZE) == ()
    assert (
        limits.describe(scores) == "mean KL 0.500000 (no limit), same top token 0.00% (no limit)."
    )
    assert limits.to_dict() == {"max_kl": None, "min_top1": None}


@pytest.mark.parametrize("is_float", [False, True])
def test_a_kl_that_no_rounding_makes_fails_whatever_the_limits(is_float):
    limits = Limits(math.inf, 0.0, is_float)
    (line,) = limits.failures(make_scores(mean_kl=13.137889), VOCAB_SIZE)
    assert line == (
        "mean KL is 13.137889, and rounding to 8 bits never makes more than 1 of a sound model: "
        "the float model is not the source of the deployed weights, or one of the two is damaged"
    )
    # Of few tokens chance may move it by three standard errors.
    scores = make_scores(mean_kl=IMPOSSIBLE_KL + 0.29, kl_standard_error=0.1)
    assert limits.failures(scores, VOCAB_SIZE) == ()
    worse = make_scores(mean_kl=IMPOSSIBLE_KL + 0.31, kl_standard_error=0.1)
    assert len(limits.failures(worse, VOCAB_SIZE)) == 1


def test_float_weights_have_tighter_defaults():
    limits = Limits(is_float=True)
    assert limits.to_dict() == {"max_kl": MAX_KL_FLOAT, "min_top1": MIN_TOP1_FLOAT}
    scores = make_scores(mean_kl=2.1 * MAX_KL_FLOAT, kl_standard_error=1.0, top1=0.96)
    assert len(limits.failures(scores, VOCAB_SIZE)) == 2
    assert Limits().failures(scores, VOCAB_SIZE) == ()
    assert replace(limits, max_kl=0.01, min_top1=0.9).failures(scores, VOCAB_SIZE) == ()


@pytest.mark.parametrize("perplexity", [500.0, 970.0, 1000.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["float", "deployed"])
def test_a_model_that_guesses_fails_whatever_the_limits(name, perplexity):
    scores = make_scores(**{f"perplexity_{name}": perplexity})
    (line,) = Limits(math.inf, 0.0).failures(scores, VOCAB_SIZE)
    assert line.startswith(f"the {name} model knows nothing of this text: its perplexity is ")
    assert Limits().failures(make_scores(**{f"perplexity_{name}": 499.0}), VOCAB_SIZE) == ()


def test_the_defaults_are_those_of_the_page():
    page = (ROOT / "docs/verify.md").read_text("utf-8")
    assert f"| `--max-kl` | {MAX_KL:g}, for float weights {MAX_KL_FLOAT:g} |" in page
    assert f"| `--min-top1` | {MIN_TOP1:g}, for float weights {MIN_TOP1_FLOAT:g} |" in page
    assert f"above {IMPOSSIBLE_KL:g} nat" in page


def test_limits_import_no_torch():
    code = "import sys, vacc_deploy.reference.limits; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

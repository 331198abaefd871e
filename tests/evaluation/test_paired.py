"""The counts, the test and the interval of two models' answers to the same questions."""

import math
import random

import pytest

from vacc_deploy.evaluation.paired import Paired


def test_counts_and_shares_of_the_answers():
    paired = Paired.count([True, True, False, False, True], [True, False, True, False, False])
    assert paired == Paired(both=1, float_only=2, deployed_only=1, neither=1)
    assert (paired.total, paired.float_share, paired.deployed_share) == (5, 0.6, 0.4)
    assert paired.difference == pytest.approx(-0.2)


def test_answers_to_different_questions_are_refused():
    with pytest.raises(ValueError, match="zip"):
        Paired.count([True], [True, False])


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    # By hand: 2 · (1 + 8) / 2^8; 2 · 1 / 2^5; no difference; as many on both sides.
    [(1, 7, 18 / 256), (0, 5, 2 / 32), (0, 0, 1.0), (3, 3, 1.0)],
)
def test_p_is_the_exact_binomial_one(lost, won, expected):
    assert Paired(10, lost, won, 5).p_value() == pytest.approx(expected)
    assert Paired(10, won, lost, 5).p_value() == pytest.approx(expected)


def test_p_of_thousands_of_differing_answers_is_a_number():
    assert 0 < Paired(0, 1000, 1100, 0).p_value() < 0.05


def test_interval_equals_the_published_formula():
    # Of Bonett and Price (2012): n + 2 questions, one more in each cell that differs.
    low, high = Paired(both=59, float_only=16, deployed_only=6, neither=19).interval()
    lost, won = 17 / 102, 7 / 102
    width = 1.959964 * math.sqrt((lost + won - (won - lost) ** 2) / 102)
    assert (low, high) == pytest.approx((won - lost - width, won - lost + width))
    assert low < -0.1 < high


def test_interval_of_equal_models_is_not_empty_and_never_leaves_the_scale():
    low, high = Paired(200, 0, 0, 100).interval()
    assert low == pytest.approx(-high) and 0 < high < 0.02
    assert all(-1 <= value <= 1 for value in Paired(0, 0, 1, 0).interval())


def test_interval_holds_the_true_difference_as_often_as_it_says():
    generator, hits = random.Random(1), 0
    for _ in range(400):
        pairs = [(generator.random() < 0.6, generator.random()) for _ in range(180)]
        # 4 % of the answers change, right to wrong three times as often.
        deployed = [r != (x < (0.06 if r else 0.03)) for r, x in pairs]
        low, high = Paired.count([r for r, _ in pairs], deployed).interval()
        hits += low <= 0.4 * 0.03 - 0.6 * 0.06 <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_dict_and_text_have_the_same_figures():
    paired = Paired(50, 4, 2, 44)
    values, text = paired.to_dict(), dict(paired.describe())
    assert values["questions"] == 100 and values["difference"] == pytest.approx(-0.02)
    assert text["accuracy"] == "54.00% float, 52.00% deployed"
    assert text["right in one alone"].endswith(f"p {values['mcnemar_p']:.3f}")

from collections import Counter

import pytest

from vacc_deploy.demo.task import (
    END_OF_SENTENCE,
    Problem,
    is_held_out,
    parse_answer,
    sample_problems,
    share_correct,
)


def test_a_problem_shows_question_reasoning_and_answer():
    problem = Problem(47, 385)
    assert problem.question == "47+385="
    assert problem.answer == 432
    assert problem.reasoning == (
        "ones: 7+5+0=12, write 2, carry 1\n"
        "tens: 4+8+1=13, write 3, carry 1\n"
        "hundreds: 0+3+1=4, write 4, carry 0"
    )
    assert problem.completion == f"{problem.reasoning}\n</think>\n\n432"
    assert problem.response == f"<think>\n{problem.reasoning}\n</think>\n\n432"


def test_the_last_carry_becomes_a_new_digit_and_zero_has_one():
    problem = Problem(9999, 1)
    assert problem.reasoning.splitlines()[-1] == "thousands: 9+0+1=10, write 0, carry 1"
    assert problem.completion.endswith("\n\n10000")
    assert Problem(0, 0).reasoning == "ones: 0+0+0=0, write 0, carry 0"


def test_the_reasoning_leads_to_the_answer():
    for problem in sample_problems(500, seed=3, held_out=False):
        lines = problem.reasoning.splitlines()
        written = "".join(line.split("write ")[1][0] for line in reversed(lines))
        assert int(lines[-1][-1] + written) == problem.answer
        assert parse_answer(problem.response) == problem.answer


def test_about_one_pair_in_twenty_is_held_out():
    pairs = [(a, b) for a in range(300) for b in range(a + 1)]
    assert all(is_held_out(a, b) == is_held_out(b, a) for a, b in pairs)
    assert 0.045 < sum(is_held_out(a, b) for a, b in pairs) / len(pairs) < 0.055


def test_held_out_problems_are_never_training_problems():
    training = sample_problems(5000, seed=0, held_out=False)
    held_out = sample_problems(2000, seed=0, held_out=True)
    assert len(set(held_out)) == 2000
    seen = {frozenset((problem.a, problem.b)) for problem in training}
    assert seen.isdisjoint(frozenset((problem.a, problem.b)) for problem in held_out)


def test_sampling_depends_on_the_seed_only():
    first = sample_problems(50, seed=7, held_out=True)
    assert first == sample_problems(50, seed=7, held_out=True)
    assert first != sample_problems(50, seed=8, held_out=True)
    assert sample_problems(0, seed=7, held_out=True) == []


def test_the_split_stays_the_one_the_model_was_trained_with():
    problems = sample_problems(4, seed=5, held_out=True)
    assert [(p.a, p.b) for p in problems] == [(8815, 27), (5, 603), (11, 8007), (1, 5)]


def test_every_combination_of_digit_counts_is_drawn_alike():
    problems = sample_problems(8000, seed=2, held_out=False)
    counts = Counter((len(str(p.a)), len(str(p.b))) for p in problems)
    assert len(counts) == 16
    assert min(counts.values()) > 350
    assert max(counts.values()) < 650


def test_share_correct_counts_exact_answers():
    problems = [Problem(1, 2), Problem(30, 4)]
    assert share_correct(problems, ["ones\n</think>\n\n3", "</think>\n\n35"]) == 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nones: 1+1+0=2\n</think>\n\n2", 2),
        ("</think>\n\n432" + END_OF_SENTENCE, 432),
        ("</think>\n\n432" + END_OF_SENTENCE + END_OF_SENTENCE, 432),
        ("</think> 12 </think>\n 7 ", 7),
        ("432", None),
        ("</think>", None),
        ("</think>\n\n0432", None),
        ("</think>\n\n-3", None),
        ("</think>\n\nThe answer is 5", None),
        ("</think>\n\n４", None),
        ("</think>\n\n" + "9" * 5000, None),
        ("", None),
    ],
)
def test_parse_answer(text, expected):
    assert parse_answer(text) == expected

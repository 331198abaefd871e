r"""What the last ``\boxed{...}`` of an answer holds, and when two results are the same."""

import pytest

from vacc_deploy.evaluation.boxed import is_same_result, last_boxed


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, wait: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{3} \fboxed {4}", "4"),
        # Two backslashes end a line; a brace behind them is a brace.
        (r"\boxed{1 \\}", r"1 \\"),
        (r"\boxed{1\\{2}}", r"1\\{2}"),
        ("no box", None),
        (r"\boxed{cut off", None),
        # The last whole one counts: an answer may end at the limit of tokens.
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{}", ""),
    ],
)
def test_last_whole_box_is_read_with_its_inner_braces(text, boxed):
    assert last_boxed(text) == boxed


def test_many_open_boxes_do_not_take_all_time():
    assert last_boxed(r"\boxed{" * 20_000) is None


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("42", "42.0"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        ("0.5", r"\frac{1}{2}"),
        ("1/2", r"\dfrac12"),
        ("-1/2", r"-\frac{1}{2}"),
        ("50\\%", "0.5"),
        (r"\text{B}", "(B)"),
        (r"x^2 + 1", r"x^2+1"),
        (r"\left(1, 2\right)", "(1,2)"),
        (r"90^\circ", "90"),
        ("$7$", "7."),
        ("−3", "-3"),
    ],
)
def test_the_same_result_in_other_writing(left, right):
    assert is_same_result(left, right) and is_same_result(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("42", "43"),
        ("1,2", "12"),
        ("x+1", "1+x"),
        ("1/0", r"\frac{1}{0}"),
        ("", "0"),
        ("5", "5%"),
        ("A", "B"),
        ("9" * 5000, "9" * 5001),
    ],
)
def test_another_result(left, right):
    assert not is_same_result(left, right)

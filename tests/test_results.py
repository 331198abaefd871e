import pytest

from vacc_deploy.errors import (
    CheckFailedError,
    CheckpointError,
    OutputError,
    UsageError,
    VaccDeployError,
    list_problems,
)
from vacc_deploy.results import (
    display_width,
    format_bytes,
    format_pairs,
    format_seconds,
    format_table,
)


def test_format_table_literal_text():
    text = format_table(
        ("name", "layers", "note"), [("a", 2, "x"), ("long name", 28, ""), ("模型", "–", "y z")]
    )
    assert text == (
        "name       layers  note\n"
        "---------  ------  ----\n"
        "a               2  x\n"
        "long name      28\n"
        "模型            –  y z"
    )


def test_format_table_without_rows_and_with_a_short_row():
    assert format_table(("a", "bb"), []) == "a  bb\n-  --"
    with pytest.raises(ValueError, match="zip"):
        format_table(("a", "b"), [("1",)])


def test_format_pairs_aligns_by_display_width():
    text = format_pairs([("copy", "1 file"), ("模型", 2), ("from vacc-deploy", "x")])
    assert text == "copy              1 file\n模型              2\nfrom vacc-deploy  x"
    assert format_pairs([]) == ""


def test_display_width_counts_wide_characters_twice():
    assert (display_width(""), display_width("aé"), display_width("你好a")) == (0, 2, 5)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**2, "1.0 MiB"),
        (15_231_233_024, "14.2 GiB"),
        (5 * 1024**4, "5120.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_format_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.21, "3.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (60, "1 min 00 s"),
        (250, "4 min 10 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_list_problems_sorts_and_cuts():
    assert list_problems([]) == ""
    assert list_problems(["b", "a"]) == "  - a\n  - b"
    many = list_problems(f"p{idx:02d}" for idx in range(13)).split("\n")
    assert len(many) == 11
    assert many[9:] == ["  - p09", "  - and 3 more"]
    assert list_problems(["a", "b", "c"], limit=1) == "  - a\n  - and 2 more"


def test_exit_codes_of_the_error_tree():
    codes = {VaccDeployError: 1, CheckpointError: 1, OutputError: 1, UsageError: 2}
    for kind, code in {**codes, CheckFailedError: 3}.items():
        assert kind.exit_code == code
        assert issubclass(kind, VaccDeployError)

from pathlib import Path

import pytest

from vacc_deploy.results import (
    command,
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


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
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
        (59.96, "1 min 00 s"),
        (250, "4 min 10 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_command_quotes_what_a_shell_would_split():
    assert command("verify", Path("my fine tune")) == "vacc-deploy verify 'my fine tune'"

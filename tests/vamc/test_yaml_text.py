import time

import pytest
import yaml

from vacc_deploy.bounds import YAML_BYTES
from vacc_deploy.errors import CompileFileError
from vacc_deploy.vamc.yaml_text import key_lines, load_yaml, parse_yaml


def test_parse_yaml_reads_plain_values():
    text = "a: [[1024], [2048]]\nb: {c: true, d: ./x}\ne: 'tp: 4'\n"
    assert parse_yaml(text, where="f") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", "line 1 uses an anchor"),
        ("b: *x\n", "line 1 uses an anchor or an alias"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4 has 'c' as a repeated"),
        ("'a': 1\na: 2\n", "line 2 has 'a' as a repeated"),
        ("? [a]\n: 1\n", "line 1 has a list as a repeated or unusable key"),
        ("a: {<<: {b: 1}}\n", "merge key"),
        ("a: !!python/object/apply:os.system ['true']\n", "uses the tag"),
        ("a: !!int ''\n", "uses the tag"),
        ("a: !own 1\n", "uses the tag"),
        ("a: " + "[" * 30 + "]" * 30, "beyond 20 levels"),
        ("a: " + "[" * 100_000, "beyond 20 levels"),
        ("a: [" + "1," * 3000 + "]", "or 2000 values"),
        ("a: " + "9" * 5000, "value of 5000 characters"),
        ("a: 2020-99-99", "month must be in"),
        ("a: 0x_", "not usable YAML"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("a: [1", "expected"),
        ("a: \x00", "special characters are not allowed"),
        ("a:\n\t- 1", "cannot start any token"),
    ],
)
def test_parse_yaml_refuses_in_one_error(text, message):
    with pytest.raises(CompileFileError, match="x.yaml is not usable YAML") as caught:
        parse_yaml(text, where="x.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parse_yaml_a_long_number_that_is_allowed_is_quick():
    start = time.perf_counter()
    parse_yaml("a: 0x" + "f" * 4000 + "\nb: " + "1:" * 2000 + "1\n", where="f")
    assert time.perf_counter() - start < 2


def test_load_yaml_tells_what_is_wrong_with_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(CompileFileError, match="a.yaml cannot be read: No such file"):
        load_yaml(path)
    with pytest.raises(CompileFileError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(CompileFileError, match="is not UTF-8 text.*Save it as UTF-8"):
        load_yaml(path)
    path.write_bytes(b"#" * (YAML_BYTES + 1))
    with pytest.raises(CompileFileError, match="more than 65,536 bytes"):
        load_yaml(path)


def test_load_yaml_takes_a_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert load_yaml(path) == {"a": 1, "b": 2}


def test_key_lines_names_the_line_of_every_key():
    text = "# head\na: 1\n\nb:\n  c: {d: 1,\n    e: 2}\nf: [[1], [2]]\n"
    assert key_lines(text) == {"a": 2, "b": 4, "b.c": 5, "b.c.d": 5, "b.c.e": 6, "f": 7}
    assert key_lines("") == {} == key_lines("- 1")

"""``--report``: where a page may be written, what it may replace, and when it is refused."""

import json

import pytest
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from page_reader import read_page

from vacc_deploy.cli import cli
from vacc_deploy.errors import OutputError, UsageError
from vacc_deploy.outputs.seal import is_sealed_text, seal_page
from vacc_deploy.pages.file import check_page_file, write_page
from vacc_deploy.pages.page import PAGE_HEAD
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

TEXT = "The quick brown fox jumps over the lazy dog. " * 9


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def pair(tmp_path):
    """Return a float directory and its int8 directory."""
    source = write_checkpoint(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    return source, quantize(source, options=QuantizeOptions("rtn", formats=("int8",))).output_dir


def refusal(path, overwrite=True):
    with pytest.raises((OutputError, UsageError)) as caught:
        check_page_file(path, overwrite=overwrite)
    return str(caught.value)


def test_a_seal_of_a_page_is_a_comment_and_notices_a_change():
    page = seal_page("<p>模</p>\n")
    assert page.endswith(" -->\n") and is_sealed_text(page.encode())
    assert not is_sealed_text(page.replace("模", "型").encode())
    assert not is_sealed_text(page.encode() + b"more")


def test_what_may_not_be_replaced_is_refused_before_the_work(tmp_path):
    path = tmp_path / "a.html"
    assert refusal(tmp_path / "a.txt") == (
        f"--report is {tmp_path / 'a.txt'}, expected a name that ends with .html."
    )
    assert refusal(tmp_path / "no" / "a.html") == (
        f"{tmp_path / 'no'} is no directory. Create it, or choose another --report."
    )
    path.write_text("<html>mine</html>")
    assert refusal(path) == (
        f"{path} was not written by vacc-deploy, so it will not be replaced. Remove it yourself, "
        "or choose another --report."
    )
    path.write_text(seal_page(f"{PAGE_HEAD}<p>old</p>\n").replace("old", "new"))
    assert "was changed since it was written" in refusal(path)
    path.write_text(seal_page(f"{PAGE_HEAD}<p>old</p>\n"))
    assert refusal(path, overwrite=False) == (
        f"{path} exists already. Add --overwrite to replace it."
    )
    check_page_file(path, overwrite=True)
    write_page(path, seal_page(f"{PAGE_HEAD}<p>new</p>\n"), overwrite=True)
    assert "new" in path.read_text()
    (tmp_path / "link.html").symlink_to(path)
    assert "is a link to" in refusal(tmp_path / "link.html")


def test_a_closed_directory_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "choose another --report" in refusal(tmp_path / "a.html").lower()


def test_verify_replaces_its_own_page_and_no_other(pair, tmp_path):
    _, deployed = pair
    page, text = tmp_path / "page.html", ("--text", tmp_path / "text.txt")
    for language, word in (("en", "Failed"), ("zh", "未通过")):
        options = ("--report", page, "--language", language, "--max-kl", "0")
        result = run("verify", deployed, *text, *options)
        assert result.exit_code == 3, result.output
        assert f"the page is in {page}" in result.stderr
        words = read_page(page.read_text("utf-8")).words
        assert word in words and "mean KL is" in words
    page.write_text(f"{page.read_text('utf-8')}<p>a note</p>", "utf-8")
    result = run("verify", deployed, *text, "--report", page)
    assert result.exit_code == 1 and "was changed since it was written" in result.stderr
    assert not result.stdout


def test_a_page_of_damaged_files_says_so_first(pair, tmp_path):
    _, deployed = pair
    weights = next(deployed.glob("*-00002-of-*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    page = tmp_path / "page.html"
    result = run("verify", deployed, "--text", tmp_path / "text.txt", "--report", page)
    assert result.exit_code == 3
    found = read_page(page.read_text("utf-8"))
    assert "nothing was compared" in found.words and weights.name in found.words
    assert not [one for one in found.figures if one.origin.startswith("verify.mean")]


def test_quantize_writes_a_page_after_its_output(pair, tmp_path):
    source, _ = pair
    page, output = tmp_path / "page.html", tmp_path / "out"
    first = run("quantize", source, "--output", output, "--report", page, "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["output_dir"] == str(output)
    words = read_page(page.read_text("utf-8")).words
    assert "Written" in words and "rounded without calibration text" in words
    again = run("quantize", source, "--output", output, "--report", page, "--resume")
    assert again.exit_code == 0, again.output
    assert "finished before" in read_page(page.read_text("utf-8")).words
    third = run("quantize", source, "--output", tmp_path / "other", "--report", page)
    assert third.exit_code == 1 and "Add --overwrite" in third.stderr
    assert not (tmp_path / "other").exists()


def test_a_page_that_cannot_be_written_leaves_the_output(pair, tmp_path, monkeypatch):
    source, deployed = pair

    def fail(*_, **__):
        raise OutputError("no space")

    monkeypatch.setattr("vacc_deploy.pages.file.write_page", fail)
    result = run("quantize", source, "--output", tmp_path / "out", "--report", tmp_path / "p.html")
    assert result.exit_code == 1 and "only the page is missing" in result.stderr
    assert (tmp_path / "out" / "vacc_deploy.json").is_file()
    # And the figures of a comparison that may have taken hours.
    text = ("--text", tmp_path / "text.txt")
    result = run("verify", deployed, *text, "--report", tmp_path / "p.html")
    assert result.exit_code == 1 and "no space" in result.stderr
    assert "same top token" in result.stdout


def test_options_that_have_no_page_are_wrong_usage(pair, tmp_path):
    source, deployed = pair
    result = run("quantize", source, "--dry-run", "--report", tmp_path / "p.html")
    assert result.exit_code == 2 and "--dry-run writes nothing" in result.stderr
    result = run("verify", deployed, "--language", "zh")
    assert result.exit_code == 2 and "--language is that of a page" in result.stderr


def test_check_writes_a_page_beside_what_it_prints(pair, tmp_path):
    _, deployed = pair
    page = tmp_path / "page.html"
    config = json.loads((deployed / "config.json").read_text())
    (deployed / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    result = run("check", deployed, "--report", page, "--json")
    values = json.loads(result.stdout)
    assert result.exit_code == 3 and not values["passed"]
    found = read_page(page.read_text("utf-8"))
    assert "Failed" in found.words and str(deployed) in found.words
    assert f"vacc-deploy check {deployed} --report {page}" in found.words
    for finding in values["findings"]:
        assert finding["code"] in found.words and finding["title"] in found.words
    shown = {one.origin: int(one.value) for one in found.figures}
    for severity in ("error", "warning", "note"):
        expected = sum(one["severity"] == severity for one in values["findings"])
        assert shown[f"count check.findings severity={severity}"] == expected

"""Every number of a page is that of the JSON, and is shown in its own digits."""

import json
import re

import pytest
from click.testing import CliRunner
from page_reader import expected, read_page
from quantize_runs import make_source, write_words

from vacc_deploy.cli import cli
from vacc_deploy.reference.verify import verify

TEXT = "江水 flows down; the quick brown fox jumps over the lazy dog. " * 9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Calibrate a small model and compare it; return the directory with what both wrote."""
    path = tmp_path_factory.mktemp("pages")
    source, words = make_source(path / "model", num_layers=3), write_words(path / "words.txt")
    (path / "text.txt").write_text(TEXT, "utf-8")
    options = ["--num-samples", "24", "--seq-len", "32", "--calibration", f"text={words}"]
    output, page = path / "int8", path / "quantize.html"
    write = ["quantize", source, "--output", output, "--format", "int8", *options]
    compare = ["verify", output, "--text", path / "text.txt", "--seq-len", "64", "--max-kl", "0.5"]
    compare += ["--activations", "int8"]
    for name, arguments, page in (
        ("quantize", write, path / "quantize.html"),
        ("verify", compare, path / "verify.html"),
    ):
        words = [str(word) for word in (*arguments, "--report", page, "--json")]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code in (0, 3), result.output
        (path / f"{name}.json").write_text(result.stdout, "utf-8")
    return path


@pytest.fixture(scope="module")
def roots(run):
    """Return the JSON objects that pages name."""
    names = {"verify": "verify.json", "quantize": "quantize.json"}
    names |= {"report": "int8/quantize_report.json", "manifest": "int8/vacc_deploy.json"}
    return {name: json.loads((run / file).read_text("utf-8")) for name, file in names.items()}


@pytest.fixture(scope="module")
def token_kl(run):
    result = verify(
        run / "int8", text_file=run / "text.txt", sequence_length=64, activations="int8"
    )
    return result.scores.token_kl


@pytest.mark.parametrize("name", ["verify", "quantize"])
def test_every_figure_is_that_of_the_json(run, roots, token_kl, name):
    page = read_page((run / f"{name}.html").read_text("utf-8"))
    assert len(page.figures) > 150
    for one in page.figures:
        value = expected(one.origin, roots, token_kl)
        assert float(one.value) == pytest.approx(value, rel=1e-12, abs=1e-15), one
        # Of a text that is not reckoned: to the last bit.
        assert " " in one.origin or float(one.value) == value, one
        assert one.shows(value), one


def test_the_page_shows_what_matters(run):
    page = read_page((run / "verify.html").read_text("utf-8"))
    origins = {one.origin for one in page.figures}
    first = ("mean_kl", "kl_standard_error", "max_kl", "top1", "num_tokens", "perplexity_float")
    more = ("perplexity_deployed", "perplexity_change", "limits.max_kl", "limits.min_top1")
    assert origins >= {f"verify.{name}" for name in (*first, *more)}
    for layer in range(3):
        assert f"verify.layers.{layer}.relative_error" in origins
    for linear in range(21):
        rest = {f"report.linears.{linear}.error_rtn", f"verify.rounding.{linear}.relative_error"}
        assert rest <= origins
    assert "report.calibration.tokens" in origins and "quantile 0.99 verify.token_kl" in origins
    report = json.loads((run / "int8/quantize_report.json").read_text("utf-8"))
    assert report["calibration"]["sources"][0]["sha256"] in page.words


def test_the_bars_hold_every_token(run, roots):
    page = read_page((run / "verify.html").read_text("utf-8"))
    bars = [one for one in page.figures if one.is_mark and one.origin.startswith("histogram")]
    assert sum(int(one.value) for one in bars) == roots["verify"]["num_tokens"]


def test_a_figure_that_is_rounded_wrongly_is_noticed(run, roots, token_kl):
    text = (run / "verify.html").read_text("utf-8")
    wrong = re.sub(r'(data-from="verify.top1">)\d', r"\g<1>7", text)
    page = read_page(wrong)
    assert [one for one in page.figures if not one.shows(expected(one.origin, roots, token_kl))]


def test_the_page_tells_how_it_was_made(run):
    for name in ("verify", "quantize"):
        words = read_page((run / f"{name}.html").read_text("utf-8")).words
        assert f"vacc-deploy {name} " in words and "--report" in words
        assert "vacc-deploy quantize '<../model>' --output" in words or name == "quantize"


def test_a_page_needs_nothing_but_itself(run):
    """No script, no link out of the page, nothing to load."""
    for name in ("verify", "quantize"):
        text = (run / f"{name}.html").read_text("utf-8")
        page = read_page(text)
        names = {tag for tag, _ in page.tags}
        assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
        for _, attributes in page.tags:
            assert not {"src", "srcset", "action", "xlink:href"} & attributes.keys()
            assert (attributes.get("href") or "#").startswith("#")
            assert not [key for key in attributes if key.startswith("on")]
        assert "url(" not in text and "@import" not in text
        targets = {attributes.get("id") for _, attributes in page.tags}
        links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
        assert links and set(links) <= targets


def test_charts_have_an_alternative_text(run):
    page = read_page((run / "verify.html").read_text("utf-8"))
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    named = [one for one in charts if one.get("class") == "chart"]
    assert len(named) >= 10
    for one in named:
        assert one["role"] == "img" and set(one["aria-labelledby"].split()) <= set(ids)

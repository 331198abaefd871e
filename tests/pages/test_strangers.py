"""What lies in a directory may be a stranger's: a page shows it as text, or says why not."""

import json
import math

import pytest
import torch
from page_reader import read_page
from page_values import MANIFEST, REPORT, write

from vacc_deploy.bounds import MANIFEST_BYTES
from vacc_deploy.pages.audit import audit_section
from vacc_deploy.pages.check_page import check_page
from vacc_deploy.pages.evidence import read_evidence
from vacc_deploy.pages.figures import Source
from vacc_deploy.pages.origin import writing_command
from vacc_deploy.pages.page import Writer
from vacc_deploy.pages.quantize_page import quantize_page
from vacc_deploy.pages.scores import kl_section
from vacc_deploy.pages.tokenizer import tokenizer_section
from vacc_deploy.pages.verify_page import verify_page
from vacc_deploy.quantize.result import QuantizeResult
from vacc_deploy.reference.compare import LayerError
from vacc_deploy.reference.limits import Limits
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.reference.verify import VerifyResult

EVIL = '"><script>alert(1)</script><img src=x onerror=y>\u202e{0}'


def page_of(directory, **changes):
    values = {"model": "m", "deployed_dir": directory, "reference_dir": directory / "float"}
    result = VerifyResult(**{**values, "text": "t", "limits": Limits(), **changes})
    return verify_page(result, language="en", command_line="vacc-deploy verify DIR")


def check_harmless(text):
    page = read_page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe"}
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")], (tag, attributes)
    assert "\u202e" not in text
    return page


def evil(value):
    """Return a value with every text replaced by one that would be markup."""
    if isinstance(value, dict):
        return {(key if key in KEYS else EVIL): evil(one) for key, one in value.items()}
    if isinstance(value, list):
        return [evil(one) for one in value]
    return EVIL if isinstance(value, str) else value


KEYS = {
    *("calibration", "tokens", "sources", "linears", "audit", "at_risk", "layer", "max_abs", "rms"),
    *("error_rtn", "error_gptq", "num_saturated", "scale_shrink", "rows", "bytes", "files"),
    *("tool", "libraries", "source", "options", "formats", "path", "name", "method", "command"),
}


def test_no_text_of_a_directory_becomes_markup(tmp_path):
    report = evil(REPORT)
    report["linears"][0]["name"] = f"model.layers.0.{EVIL}"
    write(tmp_path, report, evil(MANIFEST) | {"command": "quantize"})
    page = check_harmless(page_of(tmp_path, model=EVIL, failures=(EVIL,), notes=(EVIL,)))
    assert page.words.count("<script>alert(1)</script>") > 5
    result = QuantizeResult(EVIL, tmp_path, "gptq", 1, 1, warnings=(EVIL,))
    check_harmless(quantize_page(result, language="zh", command_line=EVIL))


def test_no_finding_becomes_markup():
    finding = dict.fromkeys(
        ("code", "title", "target", "where", "text", "got", "expected", "why", "fix"), EVIL
    )
    result = {
        "findings": [finding | {"severity": EVIL}, 3, None],
        "targets": [{"target": EVIL, "kind": EVIL}],
    }
    page = check_harmless(check_page(result, language="en", command_line=EVIL))
    # A severity that is not known counts as the gravest.
    assert "Failed" in page.words


@pytest.mark.parametrize(
    "value", [None, 3, "x", [], [[]], {}, True, 1e308, -1, {"0": {}}, [3, "x"]]
)
def test_values_of_the_wrong_kind_are_left_out(tmp_path, value):
    def paths(part, path=()):
        for key, one in part.items() if isinstance(part, dict) else enumerate(part):
            yield (*path, key)
            if isinstance(one, (dict, list)):
                yield from paths(one, (*path, key))

    for whole in (REPORT, MANIFEST):
        for path in paths(whole):
            changed = json.loads(json.dumps(whole))
            *way, last = path
            part = changed
            for key in way:
                part = part[key]
            part[last] = value
            write(tmp_path, *((changed, MANIFEST) if whole is REPORT else (REPORT, changed)))
            result = QuantizeResult("m", tmp_path, "gptq", 1, 1)
            read_page(quantize_page(result, language="en", command_line="x"))


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 399, "1" + "0" * 307]
)
def test_numbers_that_are_none_are_dashes(tmp_path, number):
    text = json.dumps(REPORT).replace("0.2", number).replace("70000.0", number)
    write(tmp_path, text, json.dumps(MANIFEST).replace("3", number))
    check_harmless(page_of(tmp_path))


def test_files_that_cannot_be_read_are_told(tmp_path):
    write(tmp_path, "{", "[1]")
    words = read_page(page_of(tmp_path)).words
    assert "quantize_report.json cannot be shown" in words
    assert "vacc_deploy.json cannot be shown" in words
    (tmp_path / "quantize_report.json").write_bytes(b" " * (MANIFEST_BYTES + 1))
    assert "too many for such a file" in read_page(page_of(tmp_path)).words
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no manifest" in read_page(page_of(empty)).words


def test_what_is_listed_has_an_end(tmp_path):
    files = {f"f{number}": {"bytes": 1, "sha256": "0"} for number in range(2500)}
    linear = REPORT["linears"][0]
    names = [linear | {"name": f"model.layers.{i}.x{i}_proj"} for i in range(5000)]
    write(tmp_path, REPORT | {"linears": names}, MANIFEST | {"files": files})
    text = page_of(tmp_path)
    page = read_page(text)
    assert "500 more are not shown" in page.words
    assert sum(attributes.get("class") == "chart" for _, attributes in page.tags) <= 60
    assert len(text) < 8 << 20


def test_a_page_says_in_words_what_was_judged(tmp_path):
    scores = NextTokenScores(9, 2.0, 2.0, 0.001, 0.0001, 0.002, 1.0)
    assert "Passed" in read_page(page_of(tmp_path, scores=scores)).words
    # Where nothing was compared, nothing is passed.
    assert "Passed" not in read_page(page_of(tmp_path)).words
    assert "Not judged" in read_page(page_of(tmp_path, limits=None)).words
    words = read_page(page_of(tmp_path, failures=("mean KL is 3",))).words
    assert "Failed" in words and "mean KL is 3" in words


@pytest.mark.parametrize(("max_kl", "min_top1"), [(0.0, 1.0), (math.inf, 0.0), (5e-324, 5e-324)])
def test_a_page_shows_any_limit(tmp_path, max_kl, min_top1):
    scores = NextTokenScores(9, 2.0, 2.0, 0.001, 0.0001, 0.002, 0.9)
    page = read_page(page_of(tmp_path, scores=scores, limits=Limits(max_kl, min_top1)))
    assert ("no limit" in page.words) == (max_kl == math.inf)


def test_a_page_does_not_say_within_the_limits_of_what_chance_excuses(tmp_path):
    scores = NextTokenScores(100, 2.0, 2.0, 0.001, 0.0001, 0.002, 0.92)
    words = read_page(page_of(tmp_path, scores=scores)).words
    assert "Passed" in words and "within the limits" not in words
    assert "misses its limit by no more than chance" in words


def test_a_page_tells_layers_without_a_number_from_equal_ones(tmp_path):
    equal, broken = LayerError(0, 0.0, math.inf), LayerError(1, math.nan, math.nan)
    assert "all layers are equal" in read_page(page_of(tmp_path, layers=(equal, equal))).words
    for layers in ((equal, broken), (broken,)):
        words = read_page(page_of(tmp_path, layers=layers)).words
        assert "all layers are equal" not in words
        assert "Layers whose error is not a number: 1." in words


def test_the_audit_is_shown_where_there_is_one():
    say, source = Writer("en"), Source("verify", REPORT)
    body = audit_section(say, source).body
    page = read_page(body)
    assert "At risk" in page.words and "layer 0" in page.words
    marks = [one for one in page.figures if one.is_mark]
    assert [(one.value, one.origin) for one in marks] == [("70000.0", "verify.audit.0.max_abs")]
    assert audit_section(say, Source("verify", {})) is None
    assert audit_section(say, Source("verify", {"audit": []})) is None
    entries = [{"layer": None, "stage": "head", "tensor": "logits", "max_abs": 30.0, "rms": 2.0}]
    words = read_page(audit_section(say, Source("verify", {"audit": entries})).body).words
    assert "logits" in words and "Nothing comes near" in words


def test_of_many_risks_the_first_are_shown_and_all_are_there():
    values = {"audit": REPORT["audit"], "at_risk": [f"residual {number}" for number in range(40)]}
    page = read_page(audit_section(Writer("en"), Source("v", values)).body)
    assert "34 more" in page.words and "residual 39" in page.words


def test_a_risk_may_be_an_entry_of_the_audit():
    entry = {"layer": 3, "stage": "down", "tensor": "outputs", "max_abs": 60000.0}
    values = {"audit": [entry], "at_risk": [entry]}
    assert "layer 3 down outputs: 6e+04" in audit_section(Writer("en"), Source("v", values)).body


def test_the_tokenizer_is_shown_where_it_was_tried():
    assert tokenizer_section(Writer("en"), None) is None
    probe = {"name": "<b>", "ids": [1, 2], "transformers_ids": [1], "agrees": False}
    probe |= {"is_recomposed": False, "round_trip": "exact"}
    contract = {"passed": False, "transformers_version": "<i>", "probes": [probe], "chat": None}
    body = tokenizer_section(Writer("zh"), contract).body
    assert "&lt;b&gt;" in body and "&lt;i&gt;" in body and "<b>" not in body
    words = read_page(tokenizer_section(Writer("en"), contract).body).words
    assert "Not in every case" in words and "different" in words


@pytest.mark.parametrize("values", [[0.0] * 5, [-1e-18, 1e-9], [1e-8] * 3, [1e5, 20.0], [0.5]])
def test_a_distribution_of_any_size_has_its_bars(values):
    source = Source("verify", {"limits": {"max_kl": 0.02}})
    page = read_page(kl_section(Writer("en"), source, torch.tensor(values).double()).body)
    bars = [one for one in page.figures if one.is_mark]
    assert sum(int(one.value) for one in bars) == len(values)
    assert "limit of the mean: 0.02" in page.words


def test_a_distribution_without_a_number_is_left_out():
    kl = torch.tensor([math.nan, math.inf]).double()
    assert kl_section(Writer("en"), Source("verify", {}), kl) is None
    assert kl_section(Writer("en"), Source("verify", {}), None) is None


def test_the_command_that_wrote_a_directory_is_rebuilt_as_far_as_it_is_known(tmp_path):
    write(tmp_path, REPORT, MANIFEST | {"options": MANIFEST["options"] | {"act_order": False}})
    assert writing_command(read_evidence(tmp_path)) == (
        f"vacc-deploy quantize '<../model>' --output {tmp_path} --format vamc --calibration "
        "'c4=<f>' --seed 0 --no-act-order"
    )
    write(tmp_path, manifest=MANIFEST | {"command": "prepare"})
    assert writing_command(read_evidence(tmp_path)).startswith("vacc-deploy prepare --weights")
    write(tmp_path, manifest=MANIFEST | {"command": "demo"})
    assert writing_command(read_evidence(tmp_path)) == ""


def test_a_check_shows_the_gravest_first():
    findings = [
        {"code": f"VD00{number}", "severity": severity, "title": severity, "where": "config.json"}
        for number, severity in enumerate(("note", "error", "warning"))
    ]
    targets = [{"target": "dir", "kind": "directory", "passed": False}]
    values = {"passed": False, "findings": findings, "targets": targets}
    words = read_page(check_page(values, language="en", command_line="x")).words
    assert words.index("VD001") < words.index("VD002") < words.index("VD000")
    assert "Failed" in words and "Errors were found" in words
    values["findings"] = findings[2:]
    assert "--strict" in read_page(check_page(values, language="en", command_line="x")).words
    values = {"passed": True, "findings": [], "targets": targets}
    words = read_page(check_page(values, language="zh", command_line="x")).words
    assert "通过" in words and "没有需要报告的内容" in words
    # Of many findings the most serious are shown, wherever they stand.
    notes = [findings[0]] * 2999
    values = {"passed": False, "findings": [*notes, findings[1]], "targets": []}
    page = read_page(check_page(values, language="en", command_line="x"))
    assert "1,000 more" in page.words and "VD001" in page.words
    assert "Errors were found" in page.words
    assert [int(one.value) for one in page.figures] == [1, 0, 2999]

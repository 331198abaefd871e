"""The largest activations of a calibrated run: what is seen, written down and read again."""

import json
import math
from dataclasses import replace

import pytest
import torch
from quantize_runs import calibration_rows, gptq_options, make_source, write_words

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.quantize.maxima import LayerMaxima, ranges_of, read_maxima, read_ranges
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.result import REPORT_NAME
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.compare import compare_on_tokens

TENSORS = [
    *(("qkv", "input"), ("o", "input"), ("o", "residual")),
    *(("gate_up", "input"), ("down", "input"), ("down", "residual")),
]
SOUND = {f"{stage} {tensor}": 2.5 for stage, tensor in TENSORS}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("text") / "words.txt")


def see_all(value):
    maxima = LayerMaxima()
    for stage, tensor in TENSORS:
        maxima.see(stage, tensor, torch.tensor([[1.0, -0.5]]))
        maxima.see(stage, tensor, torch.tensor([[value, 0.0]]))
    return maxima


@pytest.mark.parametrize("effort", ["full", "fast"])
def test_the_figures_are_those_of_the_quantized_model(tmp_path, text, effort):
    """The other way to them: the finished directory over the same rows."""
    source, options = make_source(tmp_path / "model"), gptq_options(text, effort=effort)
    options = replace(options, compute_dtype="float32")
    result = quantize(source, options=options, output=tmp_path / "out")
    deployed = Checkpoint.open(result.output_dir)
    tokens = torch.from_numpy(calibration_rows(source, options).tokens)
    found = compare_on_tokens(deployed, deployed, tokens, audit=True).ranges
    expected = {(r.layer, r.stage, r.tensor): r.max_abs for r in found}
    assert [(r.layer, r.stage, r.tensor) for r in result.audit] == [
        (layer, *names) for layer in range(2) for names in TENSORS
    ]
    for each in result.audit:
        exact = expected[each.layer, each.stage, each.tensor]
        assert each.max_abs == pytest.approx(exact, rel=1e-3), each.name
    report = json.loads((result.output_dir / REPORT_NAME).read_text("utf-8"))
    assert report["audit"] == result.to_dict()["audit"] == [r.to_dict() for r in result.audit]
    assert report["at_risk"] == result.to_dict()["at_risk"] == []
    # A finished output says the same again.
    again = quantize(source, options=options, output=tmp_path / "out", resume=True)
    assert again.already_finished and again.audit == result.audit


def test_what_is_at_risk_is_noted(tmp_path, text, monkeypatch):
    monkeypatch.setattr("vacc_deploy.reference.ranges.RISK_SHARE", 1e-6)
    source = make_source(tmp_path / "model", num_layers=1)
    result = quantize(source, options=gptq_options(text), output=tmp_path / "out")
    report = json.loads((result.output_dir / REPORT_NAME).read_text("utf-8"))
    assert len(report["at_risk"]) == len(TENSORS)
    (note,) = (note for note in report["notes"] if note.startswith("at risk in float16"))
    assert note.endswith(" vacc-deploy verify --audit measures more of them.")
    assert note in result.to_dict()["notes"] and f"\nNote: {note}" in result.to_text()


def test_all_ranks_count():
    class Two(Ranks):
        count = 2

        def collect(self, value):
            return [value, [2 * each for each in value]]

    maxima = see_all(-3.0)
    assert maxima.join(ALONE) == dict.fromkeys(SOUND, 3.0)
    assert maxima.join(Two()) == dict.fromkeys(SOUND, 6.0)
    assert see_all(math.nan).join(Two()) == dict.fromkeys(SOUND, math.inf)


def test_what_was_written_is_read_again():
    for value in (2.5, math.inf):
        maxima = dict.fromkeys(SOUND, value)
        assert read_maxima(json.loads(json.dumps(maxima))) == maxima
        ranges = ranges_of([maxima, {}, maxima])
        assert [r.layer for r in ranges] == [0] * 6 + [2] * 6
        assert read_ranges([r.to_dict() for r in ranges]) == ranges
    assert (read_maxima({}), read_ranges([])) == ({}, ())


@pytest.mark.parametrize("value", [None, [], {"qkv input": 1.0}, SOUND | {"x": 1.0}])
def test_maxima_of_other_tensors_are_refused(value):
    with pytest.raises(ValueError, match="the largest activations are"):
        read_maxima(value)


@pytest.mark.parametrize("bad", [-1.0, math.nan, "1", True, None])
def test_maxima_that_are_no_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="a largest activation is"):
        read_maxima(SOUND | {"o input": bad})


@pytest.mark.parametrize(
    "change",
    [{"layer": True}, {"stage": "head"}, {"tensor": 5}, {"max_abs": -1.0}, {"max_abs": "1"}],
)
def test_an_audit_that_is_none_is_refused(change):
    (entry, *_) = [r.to_dict() for r in ranges_of([SOUND])]
    with pytest.raises(ValueError, match="an entry of the audit is"):
        read_ranges([entry | change])
    for value in (None, 5, [5]):
        with pytest.raises(ValueError, match="an entry of the audit is"):
            read_ranges(value)

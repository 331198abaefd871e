"""Outputs in several formats: a directory for each, all with the same integers."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoint_builders import write_checkpoint
from resume_runs import RTN, contents
from texts import read_json

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import OutputError
from vacc_deploy.formats.layouts import FORMATS, VAMC
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize


def test_several_formats_are_directories_of_their_own(model, output, gptq, expected):
    options = replace(gptq, formats=("int8", VAMC))
    result = quantize(model, options=options, output=output)
    names = {path.name for path in output.iterdir()}
    assert names == {"int8", VAMC, MANIFEST_NAME, TIMING_NAME}
    manifest = read_json(output / MANIFEST_NAME)
    assert manifest["files"].keys() == {f"int8/{MANIFEST_NAME}", f"{VAMC}/{MANIFEST_NAME}"}
    assert manifest["options"]["formats"] == ["int8", VAMC]
    # But for the way to the source, the directory is that of a run with one format.
    alone, inner = dict(expected["gptq"]), contents(output / VAMC)
    own, other = (json.loads(files.pop(MANIFEST_NAME)) for files in (alone, inner))
    assert inner == alone
    assert other["source"] == {"path": "../../model"} and own["source"] == {"path": "../model"}
    assert other["files"] == own["files"] and other["options"] == own["options"]
    assert f"Next: vacc-deploy verify {output / VAMC}" in result.to_text()
    quantize(model, options=options, output=output, overwrite=True)
    (output / VAMC / "mine").touch()
    with pytest.raises(OutputError, match=f"  - {VAMC}/mine: not listed"):
        quantize(model, options=options, output=output, overwrite=True)


def test_all_formats_of_a_run_hold_the_same_integers_and_scales(tmp_path, gptq):
    model = write_checkpoint(tmp_path / "model", hidden_size=128, intermediate_size=256)
    output, options = tmp_path / "out", replace(gptq, formats=FORMATS)
    quantize(model, options=options, output=output)
    opened = {layout: Checkpoint.open(output / layout) for layout in FORMATS}
    for name in opened["int8"].config.linear_names():
        codes, scale = codes_from("int8", opened["int8"].read, name)
        assert codes.dtype == torch.int8 and scale.dtype == torch.float16
        for layout, checkpoint in opened.items():
            got, got_scale = codes_from(layout, checkpoint.read, name, scale)
            assert torch.equal(got, codes) and torch.equal(got_scale, scale)


def test_default_outputs_of_formats(tmp_path):
    source = write_checkpoint(tmp_path / "model", hidden_size=128, intermediate_size=256)
    for formats, name in (
        *(((VAMC,), "int8"), (("int8",), "int8-codes"), (("gptq",), "gptq")),
        *((("gptq-one-group",), "gptq"), (("int-quantized",), "int-quantized")),
        (("int8", VAMC), "quantized"),
    ):
        options = replace(RTN, formats=formats)
        result = quantize(source, options=options, dry_run=True)
        assert result.output_dir == tmp_path / f"model-{name}"

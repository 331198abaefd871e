"""The report of a finished output, which somebody may have changed: read by ``--resume``."""

import json

import pytest

from vacc_deploy.errors import OutputError
from vacc_deploy.progress import SILENT
from vacc_deploy.quantize.result import REPORT_NAME, QuantizeResult
from vacc_deploy.quantize.standing import Finished, take_finished

RECORD = {"name": "model.layers.0.mlp.up_proj", "method": "rtn", "error_gptq": None}


def take(directory, report):
    (directory / "vacc_deploy.json").write_text('{"format_version": 1, "files": {}}', "utf-8")
    (directory / REPORT_NAME).write_text(json.dumps(report), "utf-8")
    planned = QuantizeResult("a", directory, "rtn", 1, 1, formats=("int8",))
    return take_finished(planned, Finished({"a": 1}), {"a": 1}, SILENT)


def test_a_sound_report_gives_its_linears_and_warnings(tmp_path):
    result = take(tmp_path, {"linears": [RECORD | {"num_saturated": 2}], "warnings": ["a"]})
    assert result.totals()["num_saturated"] == 2 and result.warnings == ("a",)


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        ([], "it lacks the linears or the warnings"),
        ({"warnings": []}, "it lacks the linears or the warnings"),
        ({"linears": [], "warnings": [1]}, "a warning is no text"),
        ({"linears": [1], "warnings": []}, "a record of a linear is 1"),
        ({"linears": [RECORD | {"more": 1}], "warnings": []}, "a record of a linear is"),
        ({"linears": [{"name": "a"}], "warnings": []}, "method is None, expected text"),
        ({"linears": [RECORD | {"error_rtn": "a"}], "warnings": []}, "error_rtn is 'a', expected"),
        ({"linears": [RECORD | {"num_pinned": -1}], "warnings": []}, "num_pinned is -1, expected"),
        ({"linears": [RECORD | {"num_pinned": None}], "warnings": []}, "num_pinned is None"),
        ({"linears": [RECORD | {"correction": 10**400}], "warnings": []}, "correction is 1000"),
    ],
)
def test_another_report_is_refused_and_the_way_out_is_told(tmp_path, report, problem):
    with pytest.raises(OutputError, match=f"{REPORT_NAME} is not what quantize writes: ") as info:
        take(tmp_path, report)
    assert problem in str(info.value) and "Give --overwrite" in str(info.value)

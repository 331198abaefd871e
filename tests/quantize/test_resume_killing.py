"""Runs that are killed at a point, and the bytes of their resumption."""

from dataclasses import replace

import pytest
from resume_runs import (
    AFTER_THE_RENAMES,
    NUM_LAYERS,
    POINTS,
    REPLACING,
    RTN,
    after_record,
    between_the_renames,
    change_json,
    contents,
    interrupt,
    killed,
    names_around,
)
from texts import read_json

from vacc_deploy.errors import OutputError
from vacc_deploy.formats.layouts import COMPRESSED_TENSORS, FORMATS, GPTQ, GPTQ_ONE_GROUP, VAMC
from vacc_deploy.quantize import shards
from vacc_deploy.quantize.records import RUN_NAME
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize

BOTH = ("half of a shard", "half of a record written aside", "last layer", "before the rename")


# The sizes of the small models are no multiples of 128.
HELD = tuple(GPTQ_ONE_GROUP if name == GPTQ else name for name in FORMATS)


@pytest.mark.parametrize(
    ("method", "point"),
    [*(("gptq", point) for point in POINTS), *(("rtn", point) for point in BOTH)],
)
def test_resume_after_a_kill_gives_the_bytes_of_a_whole_run(
    model, output, gptq, expected, method, point
):
    arguments = {"options": gptq if method == "gptq" else RTN, "output": output}
    killed(POINTS[point], model, **arguments)
    result = quantize(model, **arguments, resume=True)
    assert contents(output) == expected[method]
    assert result.already_finished is (point == "after the rename")
    assert len(result.linears) == 7 * NUM_LAYERS
    assert names_around(output) == ["out"]
    (output / "mine").touch()
    again = quantize(model, **arguments, resume=True)
    assert (output / "mine").exists()
    assert again.already_finished and again.linears == result.linears
    assert again.to_text().startswith("Already finished; all file hashes verified.\n")


def test_a_dry_run_of_a_finished_output_removes_nothing(model, output, gptq, expected):
    arguments = {"options": gptq, "output": output}
    quantize(model, **arguments)
    killed(AFTER_THE_RENAMES, model, **arguments, overwrite=True)

    def around():
        return {name: contents(output.with_name(name)) for name in names_around(output)}

    before = around()
    assert len(before) == 2 and (output / RUN_NAME).exists()
    result = quantize(model, **arguments, resume=True, dry_run=True)
    assert result.already_finished and around() == before
    quantize(model, **arguments, resume=True)
    assert around() == {"out": expected["gptq"]}


def test_what_stays_of_an_older_output_is_said_by_a_finished_run_too(model, output):
    quantize(model, options=RTN, output=output)
    left = output.with_name(".out.replaced-77")
    left.mkdir()
    (left / "mine.txt").touch()
    result = quantize(model, options=RTN, output=output, resume=True)
    assert result.already_finished
    assert result.notes[-1].startswith(
        f"{output.with_name('.out.kept-77')} holds what stays of an older output (mine.txt: "
    )


@pytest.mark.parametrize("point", REPLACING)
def test_resume_after_a_kill_while_replacing_an_older_output(model, output, gptq, expected, point):
    quantize(model, options=RTN, output=output)
    arguments = {"options": gptq, "output": output, "overwrite": True}
    killed(REPLACING[point], model, **arguments)
    # The run itself knows that it may replace the older output.
    del arguments["overwrite"]
    quantize(model, **arguments, resume=True)
    assert contents(output) == expected["gptq"]
    assert names_around(output) == ["out"]


def test_an_older_output_gets_its_name_back_when_the_new_one_is_given_up(model, output, expected):
    quantize(model, options=RTN, output=output)
    killed(between_the_renames, model, options=RTN, output=output, overwrite=True)
    assert not output.exists()
    run = output.with_name("out.partial") / RUN_NAME
    change_json(run, lambda values: values.pop("overwrite"))  # as earlier versions
    with pytest.raises(OutputError, match="exists and is not empty"):
        quantize(model, options=RTN, output=output, resume=True)
    assert contents(output) == expected["rtn"]


def test_resume_again_and_again(model, output, gptq, expected):
    arguments = {"options": gptq, "output": output, "resume": True}
    for shard in range(1, NUM_LAYERS + 1):
        killed(after_record(shard), model, **arguments)
    quantize(model, **arguments)
    assert contents(output) == expected["gptq"]
    timing = read_json(output / TIMING_NAME)
    assert timing["resumes"] == 3
    assert len(timing["layer_seconds"]) == NUM_LAYERS


def test_resume_quantizes_no_finished_layer_again(model, output, gptq, monkeypatch):
    interrupt(model, output, gptq, layers=2)
    plain, names = shards.linear_tensors, []
    monkeypatch.setattr(
        shards,
        "linear_tensors",
        lambda layout, name, *rest: names.append(name) or plain(layout, name, *rest),
    )
    quantize(model, options=gptq, output=output, resume=True)
    assert len(names) == 7 and all(name.startswith("model.layers.2.") for name in names)


@pytest.mark.parametrize(
    ("method", "formats"),
    [
        ("gptq", HELD),
        ("rtn", HELD),
        ("gptq", (VAMC,)),  # stores no scales: they come from the records
        ("gptq", (GPTQ_ONE_GROUP, COMPRESSED_TENSORS)),
    ],
)
def test_resume_of_other_formats(model, output, gptq, method, formats):
    options = replace(gptq if method == "gptq" else RTN, formats=formats)
    whole = quantize(model, options=options, output=output.with_name("whole-out")).output_dir
    arguments = {"options": options, "output": output}
    killed(POINTS["between two layers"], model, **arguments)
    killed(POINTS["before the manifest"], model, **arguments, resume=True)
    quantize(model, **arguments, resume=True)
    assert contents(output) == contents(whole)
    assert quantize(model, **arguments, resume=True).already_finished

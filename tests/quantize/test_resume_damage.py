"""Damaged and strange files where a run would write, and what ``--resume`` makes of them."""

import json
import os
from dataclasses import replace

import pytest
from doubles import Recorder
from resume_runs import (
    POINTS,
    RTN,
    change_json,
    contents,
    interrupt,
    killed,
    shard_file,
)
from texts import read_json

from vacc_deploy.bounds import RUN_RECORD_BYTES
from vacc_deploy.checkpoint.fingerprint import fingerprint_file
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import OutputError
from vacc_deploy.formats.layouts import VAMC
from vacc_deploy.progress import KeptLayers
from vacc_deploy.quantize import run as run_module
from vacc_deploy.quantize.records import RUN_NAME, record_name
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize


@pytest.fixture
def partial(output):
    return output.with_name("out.partial")


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, 100)


def swell(path):
    path.write_text(json.dumps({"padding": " " * RUN_RECORD_BYTES}), "utf-8")


def no_object(path):
    path.write_text("[1]", "utf-8")


def link(path):
    """Put the file elsewhere and a link to it where it was."""
    elsewhere = path.parent.with_name("elsewhere-out")
    elsewhere.mkdir()
    path.rename(elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


DAMAGES = {
    "another byte": (flip, "has another hash than when it was written"),
    "shorter": (cut, "has 100 bytes, expected "),
    "missing": (os.unlink, "is missing"),
    "a link": (link, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("shard", [0, 1, 2])
def test_resume_makes_a_damaged_shard_again(model, output, partial, gptq, expected, damage, shard):
    interrupt(model, output, gptq, layers=2)
    act, reason = DAMAGES[damage]
    act(partial / shard_file(shard))
    recorder = Recorder()
    quantize(model, options=gptq, output=output, resume=True, progress=recorder)
    assert contents(output) == expected["gptq"]
    assert recorder.warnings[0].startswith(f"shard {shard + 1} of 5 is made again: ")
    assert reason in recorder.warnings[0]
    later = [f"going on after layer {shard - 1} instead of 2"] if shard else []
    assert recorder.warnings[1:] == later


def test_a_record_of_another_model_is_made_again(model, output, partial, tmp_path):
    options = replace(RTN, formats=(VAMC,))
    quantize(model, options=options, output=tmp_path / "whole")
    interrupt(model, output, options, layers=2)
    change_json(partial / record_name(1), lambda entry: entry.update(records=[]))
    recorder = Recorder()
    quantize(model, options=options, output=output, resume=True, progress=recorder)
    files = [contents(directory) for directory in (output, tmp_path / "whole")]
    # It names the source by its path from the output on.
    assert all(found.pop(MANIFEST_NAME) for found in files) and files[0] == files[1]
    assert "shard 2 of 5 is made again" in recorder.warnings[0]
    assert f"{record_name(1)} is damaged: it has records of 0 linears" in recorder.warnings[0]


def test_resume_removes_what_has_no_record(model, output, partial, gptq, expected, tmp_path):
    interrupt(model, output, gptq)
    (partial / shard_file(3)).write_bytes(b"half")
    (partial / "config.json").write_text("{}")
    (partial / f".{record_name(2)}.0a1b.partial").write_text('{"shard":')
    (partial / record_name(9)).write_text("{}")
    (partial / "sub").mkdir()
    (partial / "sub" / "x").touch()
    (tmp_path / "keep").touch()
    (partial / "link").symlink_to(tmp_path)
    quantize(model, options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]
    assert (tmp_path / "keep").exists()


def test_a_format_directory_that_is_a_link_is_not_followed(model, output, partial, tmp_path):
    options = replace(RTN, formats=("int8", VAMC))
    interrupt(model, output, options)
    (partial / VAMC).rename(tmp_path / "elsewhere")
    (partial / VAMC).symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    recorder = Recorder()
    quantize(model, options=options, output=output, resume=True, progress=recorder)
    assert f"{partial / VAMC / shard_file(0)} is missing" in recorder.warnings[0]
    assert contents(tmp_path / "elsewhere") == before
    assert not (output / VAMC).is_symlink()
    assert Checkpoint.open(output / VAMC).weight_bytes > 0


@pytest.mark.parametrize("damage", [cut, swell, no_object])
def test_a_shard_whose_record_is_damaged_is_made_again(
    model, output, partial, gptq, expected, damage
):
    interrupt(model, output, gptq, layers=2)
    damage(partial / record_name(1))
    recorder = Recorder()
    quantize(model, options=gptq, output=output, resume=True, progress=recorder)
    assert contents(output) == expected["gptq"]
    assert recorder.warnings == [
        f"shard 2 of 5 is made again: {partial / record_name(1)} is damaged",
        "going on after layer 0 instead of 2",
    ]


@pytest.mark.parametrize("name", [RUN_NAME, record_name(1)])
def test_a_record_that_is_a_link_is_refused_and_nothing_is_lost(
    model, output, partial, gptq, expected, name
):
    interrupt(model, output, gptq, layers=2)
    whole = (partial / name).read_bytes()
    link(partial / name)
    before = contents(partial)
    for resume in (True, False):
        with pytest.raises(OutputError, match=f"not ours: {name} in it is no file"):
            quantize(model, options=gptq, output=output, resume=resume, overwrite=not resume)
    assert contents(partial) == before
    (partial / name).unlink()
    (partial / name).write_bytes(whole)
    quantize(model, options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]
    assert read_json(output / TIMING_NAME)["resumes"] == 1


@pytest.mark.parametrize("damage", [cut, swell, no_object])
@pytest.mark.parametrize("formats", [("int8",), ("int8", VAMC)])
def test_shards_of_a_damaged_run_are_not_destroyed(model, output, partial, formats, damage):
    options = replace(RTN, formats=formats)
    interrupt(model, output, options)
    damage(partial / RUN_NAME)
    before, recorder = contents(partial), Recorder()
    with pytest.raises(OutputError) as caught:
        quantize(model, options=options, output=output)
    assert str(caught.value) == (
        f"{partial} holds shards of an interrupted run, but {RUN_NAME} there is damaged, so that "
        "none can be used again. Give --overwrite to begin again."
    )
    assert contents(partial) == before
    quantize(model, options=options, output=output, resume=True, progress=recorder)
    assert recorder.warnings == [f"{partial / RUN_NAME} is damaged: beginning again"]
    assert not partial.exists()


def test_a_damaged_run_without_a_shard_is_in_nobodys_way(model, output, partial, expected):
    killed(POINTS["file of the run in place"], model, options=RTN, output=output)
    cut(partial / RUN_NAME)
    quantize(model, options=RTN, output=output)
    assert contents(output) == expected["rtn"]


FIRST, SECOND = record_name(1), record_name(2)
FOREIGN = {
    "another version": (RUN_NAME, lambda run: run.update(version=99), "version 99, expected "),
    "no identity": (RUN_NAME, lambda run: run.pop("identity"), "it lacks the run's identity"),
    "too large": (RUN_NAME, lambda run: run.update(num_layers=10**12), "1000000000000 layers"),
    "another field": (FIRST, lambda entry: entry.update(colour=1), "it has the fields ['colour'"),
    "a field less": (SECOND, lambda entry: entry.pop("scales"), "it has the fields ['files'"),
    "another record": (SECOND, lambda entry: entry["records"][0].update(colour=1), "colour"),
    "no number": (FIRST, lambda entry: entry.update(seconds=None), "a number is None"),
    "another shard": (FIRST, lambda entry: entry.update(shard=2), "it is of shard 2, expected 1"),
    "a forged size": (
        FIRST,
        lambda entry: entry["files"].update({shard_file(1): [-(10**300), "0" * 64]}),
        f"the file '{shard_file(1)}' has the size -1000",
    ),
    "text for a number": (
        SECOND,
        lambda entry: entry["records"][0].update(dampening_frac="a"),
        "a number is 'a'",
    ),
    "nested identity": (
        RUN_NAME,
        lambda run: run["identity"].update(model=["a"]),
        "the identity has ['a'] as 'model'",
    ),
    "another kind": (FIRST, lambda entry: entry.update(files=[1]), "[1] stands in place"),
}


@pytest.mark.parametrize("kind", [*FOREIGN, "the one file of earlier versions"])
def test_finished_layers_of_another_version_are_not_destroyed(
    model, output, partial, gptq, expected, kind
):
    interrupt(model, output, gptq, layers=2)
    if kind in FOREIGN:
        name, change, reason = FOREIGN[kind]
        change_json(partial / name, change)
    else:
        name, reason = ".vacc-deploy-journal", f"expected {RUN_NAME}"
        (partial / RUN_NAME).rename(partial / name)
    before, arguments = contents(partial), {"options": gptq, "output": output}
    for more in ({}, {"resume": True}):
        with pytest.raises(OutputError) as caught:
            quantize(model, **arguments, **more)
        first, _, rest = str(caught.value).partition(" (")
        assert first == (
            f"{partial / name} was written by another version of vacc-deploy, and this one cannot "
            "read it, nor the layers that are finished there"
        )
        assert reason in rest and rest.endswith(
            "). Resume with the version that began, or give --overwrite, without --resume, to "
            "begin again."
        )
        plan = quantize(model, **arguments, **more, dry_run=True)
        assert plan.notes == (f"without --dry-run this is refused: {caught.value}",)
        assert contents(partial) == before
    quantize(model, **arguments, overwrite=True)
    assert contents(output) == expected["gptq"]


def test_a_run_that_fails_keeps_the_layers_of_another_version(
    model, output, partial, gptq, monkeypatch
):
    interrupt(model, output, gptq)
    change_json(partial / RUN_NAME, lambda run: run.update(version=99))
    before = contents(partial)

    def fail(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "begin_run", fail)
    kept = KeptLayers()
    with pytest.raises(KeyboardInterrupt):
        quantize(model, options=gptq, output=output, overwrite=True, kept=kept)
    assert contents(partial) == before and not kept.finished


# ---- finished outputs -------------------------------------------------------------------------


def test_resume_of_a_finished_output_shows_that_its_files_are_checked(model, output):
    quantize(model, options=RTN, output=output)
    progress = Recorder()
    assert quantize(model, options=RTN, output=output, resume=True, progress=progress)
    (jobs,) = [text for text in progress.notes("start") if text.startswith("Checking files ")]
    assert jobs.endswith(" bytes") and any(note.startswith("model") for note in progress.notes())


def test_resume_of_a_finished_but_damaged_output(model, output, gptq, expected):
    quantize(model, options=gptq, output=output)
    wrote = fingerprint_file(output / shard_file(2))
    flip(output / shard_file(2))
    got = fingerprint_file(output / shard_file(2))
    (output / "tokenizer.json").unlink()
    with pytest.raises(OutputError) as caught:
        quantize(model, options=gptq, output=output, resume=True)
    assert str(caught.value) == (
        f"{output} exists and is damaged:\n"
        f"  - {shard_file(2)}: its content is not what quantize wrote (sha256 {got[:12]}..., "
        f"expected {wrote[:12]}...)\n"
        "  - tokenizer.json: it is missing\n"
        "Move the files that differ away, then give --overwrite, without --resume, to replace it, "
        "or choose another --output."
    )
    with pytest.raises(OutputError, match="not proven to be ours and unchanged"):
        quantize(model, options=gptq, output=output, overwrite=True)
    (output / shard_file(2)).unlink()
    quantize(model, options=gptq, output=output, overwrite=True)
    assert contents(output) == expected["gptq"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "vacc_deploy.json: it lists no files"),
        ({"../whole-rtn/config.json": {}}, "lists '../whole-rtn/config.json', outside"),
        ({"/etc/hostname": {}}, "it lists '/etc/hostname', outside of the directory"),
        ({"config.json": 5}, "config.json: vacc_deploy.json gives no hash of it"),
    ],
)
def test_resume_of_a_finished_output_with_a_strange_manifest(model, output, files, problem):
    quantize(model, options=RTN, output=output)
    change_json(output / MANIFEST_NAME, lambda manifest: manifest.update(files=files))
    with pytest.raises(OutputError) as caught:
        quantize(model, options=RTN, output=output, resume=True)
    assert problem in str(caught.value)

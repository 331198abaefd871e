"""What lies beside an output under the name of an older one: recovered, removed, or kept."""

import os

import pytest
from written_outputs import list_files, names, refused

from vacc_deploy.outputs.output import output_directory, try_output
from vacc_deploy.progress import Progress

MARKER = ".vacc-deploy-partial"


def write(out, content="new", *, overwrite=False):
    """Write an output of one file; return what was said."""
    notes = []
    with output_directory(out, overwrite=overwrite, source=None, say=notes.append) as partial:
        (partial / "a.txt").write_text(content)
        list_files(partial)
    return notes


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def aside(out):
    """Return an older output under the name that it has while it is replaced."""
    write(out, "old")
    return out.rename(out.with_name(".out.replaced-77"))


def cut_short(out):
    """Leave what a run that was killed between its two renames leaves."""
    partial = out.with_name("out.partial")
    partial.mkdir()
    (partial / MARKER).touch()


def test_an_output_that_was_deleted_does_not_come_back(out, aside):
    (aside / "mine.txt").write_text("mine")
    kept = out.with_name(".out.kept-77")
    assert write(out) == [
        f"{kept} holds what stays of an older output. Move away what is yours, then remove it."
    ]
    assert (out / "a.txt").read_text() == "new"
    assert (kept / "mine.txt").read_text() == "mine" and not aside.exists()
    # Later runs do not look at it, one that goes on after a kill neither.
    assert write(out, overwrite=True) == []
    out.rename(out.with_name("moved"))
    cut_short(out)
    assert write(out, "newer") == []
    assert names(out.parent) == [".out.kept-77", "moved", "out"]
    assert (out / "a.txt").read_text() == "newer"


def test_what_a_run_between_its_renames_left_gets_its_name_back_and_that_is_said(out, aside):
    said = f"{out} has its name back: a run that was to replace it was killed before its end."
    cut_short(out)
    assert refused(write, out) == (
        f"{said} {out} exists and is not empty. Give --overwrite to replace it, or choose another "
        "--output."
    )
    assert (out / "a.txt").read_text() == "old" and names(out.parent) == ["out"]
    out.rename(aside)
    cut_short(out)
    assert write(out, overwrite=True) == [said]
    assert (out / "a.txt").read_text() == "new" and names(out.parent) == ["out"]


def test_what_is_tried_before_the_work_says_so_too(out, aside):
    said = []

    class Told(Progress):
        say = staticmethod(said.append)

    cut_short(out)
    assert "has its name back" in refused(try_output, out, overwrite=False, source=None)
    out.rename(aside)
    try_output(out, overwrite=True, source=None, progress=Told())
    assert len(said) == 1 and "has its name back" in said[0]


def test_what_cannot_get_its_name_back_is_lost_to_no_one(out, aside, monkeypatch):
    rename = os.rename

    def fails(source, target, **options):
        if os.fspath(target) == str(out):
            raise OSError(5, "Input/output error")
        return rename(source, target, **options)

    monkeypatch.setattr(os, "rename", fails)
    cut_short(out)
    text = refused(write, out)
    assert f"Nothing of it is lost. Rename it:\n  mv {aside} {out}" in text
    assert (aside / "a.txt").read_text() == "old"


def test_what_stays_of_a_replaced_output_is_kept_under_a_name_of_its_own(out):
    write(out, "old")
    kept = out.with_name(f".out.kept-{os.getpid()}")
    kept.mkdir()
    notes = []
    with output_directory(out, overwrite=True, source=None, say=notes.append) as partial:
        list_files(partial)
        left = out.with_name(f".out.replaced-{os.getpid()}")
        left.mkdir()
        (left / "mine.txt").write_text("mine")
    (note,) = notes
    other = out.with_name(f".out.kept-{os.getpid() + 1}")
    assert note == (
        f"{other} holds what stays of an older output (mine.txt: not listed in vacc_deploy.json). "
        "Move away what is yours, then remove it."
    )
    assert names(kept) == [] and names(other) == ["mine.txt"]

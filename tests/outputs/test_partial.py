"""The directory in which a run makes an output: links, pipes and the files of others."""

import errno
import os
import resource
from pathlib import Path

import pytest
from checkpoint_builders import write_checkpoint
from faults import error
from written_outputs import list_files, names, refused

from vacc_deploy.outputs import writer
from vacc_deploy.outputs.lock import describe_running
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.run_files import is_run_file
from vacc_deploy.outputs.writer import write_bytes
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

MARKER = ".vacc-deploy-partial"
OWN = ["partial", "run.json", "journal", "shard-00001.json", "lock-1", "lock-123456"]
NOT_OWN = ["notes.txt", "shard-1.json", "lock-0", "lock-1.txt", "run.json~", "partial2", ""]


def write(out, *, overwrite=False):
    with output_directory(out, overwrite=overwrite, source=None) as partial:
        (partial / "a.txt").write_text("text")
        list_files(partial)


def put(path, kind, target):
    """Put something there that is no file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(target.with_name("nowhere"))
    else:
        path.mkdir()


@pytest.mark.parametrize("name", OWN)
def test_the_files_of_a_run_are_known_by_their_whole_names(tmp_path, name):
    path = tmp_path / f".vacc-deploy-{name}"
    path.touch()
    assert is_run_file(path)
    half = tmp_path / f".{path.name}.0123456789abcdef.42.partial"
    half.touch()
    assert is_run_file(half) == (not name.startswith("lock"))
    path.unlink()
    assert not is_run_file(path)
    path.mkdir()
    assert not is_run_file(path)


@pytest.mark.parametrize("name", NOT_OWN)
def test_a_file_of_the_user_that_begins_alike_is_none_of_a_run(tmp_path, name):
    path = tmp_path / "out.partial" / f".vacc-deploy-{name}"
    path.parent.mkdir()
    path.write_text("mine")
    assert not is_run_file(path)
    assert "exists and is not ours" in refused(write, tmp_path / "out")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_partial_directory_that_is_a_link_is_refused(tmp_path, is_empty):
    other, partial = tmp_path / "other", tmp_path / "out.partial"
    other.mkdir()
    for name in () if is_empty else (MARKER, "mine"):
        (other / name).touch()
    partial.symlink_to(other)
    for function in (write, lambda out: write(out, overwrite=True)):
        assert refused(function, tmp_path / "out") == (
            f"{partial} is a link to {other}, and nothing is written through a link. Remove it, "
            "then rerun."
        )
    assert names(other) == ([] if is_empty else [MARKER, "mine"])
    assert partial.is_symlink()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "directory"])
@pytest.mark.parametrize("name", [MARKER, ".vacc-deploy-run.json", ".vacc-deploy-lock-1"])
def test_what_is_no_file_where_a_run_has_one_is_refused(tmp_path, kind, name):
    outside, partial = tmp_path / "outside", tmp_path / "out.partial"
    outside.write_text("outside")
    partial.mkdir()
    (partial / "mine").write_text("mine")
    if name != MARKER:
        (partial / MARKER).touch()
    put(partial / name, kind, outside)
    before = names(partial)
    assert describe_running(partial, partial / MARKER) == "" or name.endswith("lock-1")
    text = refused(write, tmp_path / "out")
    assert "not ours" in text or "is no file" in text
    source = write_checkpoint(tmp_path / "m")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        options = QuantizeOptions(method="rtn")
        assert refused(quantize, source, options=options, output=tmp_path / "out", **flags)
    assert names(partial) == before
    assert outside.read_text() == "outside"
    assert names(tmp_path) == ["m", "out.partial", "outside"]


# ---- errors of the system ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO, errno.EDQUOT, errno.ENOSPC])
def test_a_failed_write_has_the_name_of_the_file(tmp_path, monkeypatch, number):
    def fails(file, chunk):
        raise error(number)

    monkeypatch.setattr(writer, "_write_all", fails)
    with pytest.raises(OSError) as caught:
        write_bytes(tmp_path / "a", [b"x"])
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "a"))


def test_a_failed_read_is_not_told_of_the_file_that_is_written(tmp_path):
    def chunks():
        yield b"x"
        raise error(errno.EIO)

    with pytest.raises(OSError) as caught:
        write_bytes(tmp_path / "a", chunks())
    assert caught.value.filename is None


def test_a_file_that_grows_above_what_this_process_may_write(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_bytes(tmp_path / "a", [b"x" * 600, b"y" * 600])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 600 + b"y" * 400


def test_a_run_without_a_descriptor_left_leaves_nothing(tmp_path):
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        expected = pytest.raises(OSError, match="Too many open files")
        with expected, output_directory(tmp_path / "out", source=None) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / "a").touch()
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(Path(tmp_path).iterdir()) == []

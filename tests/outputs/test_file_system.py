"""Outputs on file systems that lack calls of a local disk."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoint_builders import write_checkpoint
from faults import error, refuse, refuse_sync
from onnx import TensorProto, helper, numpy_helper
from written_outputs import list_files, names, refused

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.graphs import trace
from vacc_deploy.outputs import file_system, text_file, trial
from vacc_deploy.outputs.file_system import check_space, sync_directory
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.seal import seal_text
from vacc_deploy.outputs.text_file import replace_text
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

SYNC_OF_DIRECTORIES = (
    *(errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EISDIR, errno.EACCES, errno.ENOSYS),
    *(errno.EPERM, errno.EROFS, errno.ENOTTY),
)


def write(out, *, overwrite=False):
    """Write an output of one file; return its notes."""
    notes = []
    with output_directory(out, overwrite=overwrite, say=notes.append, source=None) as folder:
        (folder / "a").write_text("new")
        list_files(folder)
    return notes


@pytest.mark.parametrize("times", [1, 99])
def test_a_marker_that_cannot_be_removed_spoils_no_finished_output(tmp_path, monkeypatch, times):
    rest = iter(range(times))

    def is_refused(path, *_):
        return "out/.vacc-deploy-" in str(path) and next(rest, None) is not None

    refuse(monkeypatch, "unlink", errno.EBUSY, only=is_refused)
    assert write(tmp_path / "out") == []
    left = [name for name in names(tmp_path / "out") if name.startswith(".")]
    assert bool(left) == (times > 1)
    monkeypatch.undo()
    assert write(tmp_path / "out", overwrite=True) == []
    assert names(tmp_path / "out") == ["a", MANIFEST_NAME]


# ---- fsync -------------------------------------------------------------------------------------


def unsynced(place, number):
    return (
        f"the file system of {place} cannot confirm that everything is on the disk (fsync: "
        f"{os.strerror(number)}). After a power failure or a lost connection make the output again."
    )


@pytest.mark.parametrize("number", SYNC_OF_DIRECTORIES, ids=errno.errorcode.get)
def test_directories_that_cannot_be_synced_are_noted_once(tmp_path, monkeypatch, number):
    refuse_sync(monkeypatch, number, of_directories=True)
    assert write(tmp_path / "out") == [unsynced(tmp_path, number)]
    assert names(tmp_path / "out") == ["a", MANIFEST_NAME]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_files_that_cannot_be_synced_are_noted_once(tmp_path, monkeypatch, number):
    refuse_sync(monkeypatch, number, of_directories=False)
    source = write_checkpoint(tmp_path / "m")
    result = prepare(source, output=tmp_path / "out", link_mode="copy")
    assert result.notes[-1] == unsynced(tmp_path, number)
    assert f"Note: {result.notes[-1]}\n" in result.to_text()
    assert result.to_dict()["notes"] == list(result.notes)


def test_a_directory_that_cannot_be_opened_is_not_synced(tmp_path, monkeypatch):
    def refused_open(*args):
        raise error(errno.EISDIR)

    monkeypatch.setattr(os, "open", refused_open)
    assert sync_directory(tmp_path) == "Is a directory"


@pytest.mark.parametrize("of_directories", [False, True])
def test_a_failed_disk_stays_an_error_and_is_named(tmp_path, monkeypatch, of_directories):
    refuse_sync(monkeypatch, errno.EIO, of_directories=of_directories)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write(tmp_path / "out")
    assert caught.value.filename.startswith(str(tmp_path / "out.partial"))
    assert names(tmp_path) == []


def test_a_small_file_is_written_without_the_sync_of_its_directory(tmp_path, monkeypatch):
    refuse_sync(monkeypatch, errno.EINVAL, of_directories=True)
    notes = []
    path = tmp_path / "a.yaml"
    replace_text(path, "x", overwrite=False, head="", say=notes.append)
    assert (path.read_text(), notes) == ("x", [unsynced(path, errno.EINVAL)])


# ---- links -------------------------------------------------------------------------------------

LINKS = (
    *(errno.ENOSYS, errno.EINVAL, errno.EIO, errno.ENOTSUP, errno.EPERM, errno.EXDEV),
    *(errno.EMLINK, errno.EACCES, errno.EROFS, errno.ENOTTY),
)


@pytest.mark.parametrize("number", LINKS, ids=errno.errorcode.get)
def test_auto_copies_where_there_are_no_hard_links_and_notes_why(tmp_path, monkeypatch, number):
    refuse(monkeypatch, "link", number)
    source = write_checkpoint(tmp_path / "m", shards=2)
    out = tmp_path / "out"
    result = prepare(source, output=out)
    assert result.notes[-1] == (
        f"{out} can hold no hard links to the weights ({os.strerror(number)}), so they were copied."
    )
    assert {how for name, _, how in result.files if name.endswith(".safetensors")} == {"copy"}
    manifest = json.loads((out / MANIFEST_NAME).read_text())["files"]
    assert "sha256" in manifest["model-00001-of-00002.safetensors"]


def test_a_copy_has_a_mode_of_its_own_and_no_note_on_that_of_the_source(tmp_path, monkeypatch):
    refuse(monkeypatch, "link", errno.ENOSYS)
    source = write_checkpoint(tmp_path / "m")
    (source / "model.safetensors").chmod(0o600)
    result = prepare(source, output=tmp_path / "out")
    assert not any("0600" in note for note in result.notes)


def test_a_copy_that_was_not_foreseen_needs_space_before_it_begins(tmp_path, monkeypatch):
    refuse(monkeypatch, "link", errno.ENOSYS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 1000))
    source = write_checkpoint(tmp_path / "m", shards=2)
    text = refused(prepare, source, output=tmp_path / "out")
    assert text.startswith(f"{tmp_path / 'out'} needs ") and "has 1000 B free" in text
    assert names(tmp_path) == ["m"]


def test_a_mount_that_counts_no_blocks_is_not_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    check_space(tmp_path / "out", 1 << 60)

    def unknown(path):
        raise error(errno.ENOSYS)

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    check_space(tmp_path / "out", 1 << 60)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EIO])
@pytest.mark.parametrize(
    ("mode", "begin", "end"),
    [
        (
            "hardlink",
            "cannot be hard-linked into",
            "Use --link-mode copy or symlink, or",
        ),
        ("symlink", "No symbolic link to", "Use --link-mode auto, or choose an --output on"),
    ],
)
def test_a_link_that_was_asked_for_is_one_error(tmp_path, monkeypatch, number, mode, begin, end):
    refuse(monkeypatch, mode.replace("hard", ""), number)
    source = write_checkpoint(tmp_path / "m")
    text = refused(prepare, source, output=tmp_path / "out", link_mode=mode)
    assert begin in text and f"({os.strerror(number)}). {end}" in text
    assert names(tmp_path) == ["m"]


def test_a_full_disk_is_no_missing_link(tmp_path, monkeypatch):
    refuse(monkeypatch, "link", errno.ENOSPC)
    text = refused(prepare, write_checkpoint(tmp_path / "m"), output=tmp_path / "out")
    assert text.startswith("The disk is full:")
    assert names(tmp_path) == ["m"]


# ---- rename ------------------------------------------------------------------------------------

RENAMES = (errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST, errno.EINVAL, errno.ENOSYS, errno.EBUSY)


@pytest.mark.parametrize("number", RENAMES, ids=errno.errorcode.get)
def test_a_rename_that_cannot_replace_an_empty_directory(tmp_path, monkeypatch, number):
    refuse(monkeypatch, "rename", number, only=lambda source, target: Path(target).exists())
    (tmp_path / "out").mkdir()
    assert write(tmp_path / "out") == []
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a", MANIFEST_NAME]


@pytest.mark.parametrize("before", ["nothing", "empty", "older"])
@pytest.mark.parametrize("number", RENAMES, ids=errno.errorcode.get)
def test_what_cannot_be_renamed_is_kept_and_the_command_is_given(
    tmp_path, monkeypatch, number, before
):
    out = tmp_path / "out"
    if before == "older":
        write(out)
        (out / "a").write_text("new")
    elif before == "empty":
        out.mkdir()
    # Not the trial at the beginning.
    refuse(monkeypatch, "rename", number, only=lambda source, _: str(source) == f"{out}.partial")
    text = refused(write, out, overwrite=True)
    first = {"nothing": "", "empty": f"rmdir {out} && ", "older": f"rm -r {out} && "}[before]
    assert text == (
        f"{out} is finished, but the file system does not let {out}.partial be renamed "
        f"({os.strerror(number)}). Nothing is lost: the whole output lies in {out}.partial. Put it "
        f"in its place:\n  {first}mv {out}.partial {out}"
    )
    assert names(tmp_path / "out.partial") == ["a", MANIFEST_NAME]
    assert before != "older" or (out / "a").read_text() == "new"
    # The next run does not throw it away.
    text = f"{out}.partial is the finished output of an earlier run, which could not be renamed. "
    assert refused(write, out, overwrite=True).startswith(text)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EINVAL, errno.ENOSYS, errno.EXDEV])
def test_a_small_file_is_written_where_it_stands_if_it_cannot_be_renamed(
    tmp_path, monkeypatch, number
):
    path, notes = tmp_path / "a.yaml", []
    path.write_text(seal_text("# ours, old\n"))
    refuse(monkeypatch, "replace", number)
    replace_text(path, "# ours", overwrite=True, head="# ours", say=notes.append)
    assert path.read_text() == "# ours" and names(tmp_path) == ["a.yaml"]
    assert notes == [
        f"the file system of {path} cannot rename ({os.strerror(number)}), so the file was written "
        "in its place and not all at once."
    ]


def test_a_small_file_stays_where_neither_a_rename_nor_the_new_one_works(tmp_path, monkeypatch):
    path, plain = tmp_path / "a.yaml", text_file.write_text
    path.write_text(older := seal_text("# ours, old\n"))
    refuse(monkeypatch, "replace", errno.ENOSYS)

    def write_half(target, text):
        if target == path:
            path.write_text(text[:3])
            raise error(errno.ENOSPC)
        return plain(target, text)

    monkeypatch.setattr(text_file, "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "# ours", overwrite=True, head="# ours")
    assert path.read_text() == older and names(tmp_path) == ["a.yaml"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EROFS, errno.EIO, errno.EPERM])
def test_a_directory_that_cannot_be_made_is_one_error(tmp_path, monkeypatch, number):
    refuse(monkeypatch, "mkdir", number, only=lambda path, *_: str(path).endswith(".partial"))
    text = refused(write, tmp_path / "out")
    assert text.startswith(f"{tmp_path / 'out'}.partial cannot be written: ")
    assert "Choose another --output" in text
    assert names(tmp_path) == []


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    out = tmp_path / "my out"
    out.mkdir()
    monkeypatch.setattr(trial, "read_mounts", lambda: [(str(tmp_path), ""), (str(out), "")])
    assert refused(check_output, out, overwrite=False, source=None) == (
        f"{out} is a mount point, so the finished output cannot take its place. Choose a directory "
        f"in it, for example --output '{out}/model'."
    )


# ---- names and modes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["模型 int8", "two\nlines", "-dash", "a'b", "x" * 231])
def test_an_output_of_any_name(tmp_path, name):
    write(tmp_path / name)
    write(tmp_path / name, overwrite=True)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x" * 232, "x" * 300, "模" * 85])
def test_a_name_that_gets_too_long_is_refused_before_the_work(tmp_path, name):
    text = refused(check_output, tmp_path / name, overwrite=False, source=None)
    assert f"has {len(name.encode())} bytes, expected at most 231 (a name has at most 255" in text
    text = refused(replace_text, tmp_path / name, "x", overwrite=False, head="")
    assert "expected at most 211" in text and text.endswith("Choose a shorter --output.")
    assert names(tmp_path) == []


def test_a_system_that_knows_no_longest_name(tmp_path, monkeypatch):
    def unknown(path, name):
        raise error(errno.EINVAL)

    monkeypatch.setattr(file_system.os, "pathconf", unknown)
    assert "expected at most 231" in refused(
        check_output, tmp_path / ("x" * 255), overwrite=False, source=None
    )


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("link_mode", ["copy", "auto"])
def test_written_files_follow_the_umask_and_links_keep_their_mode(tmp_path, umask, mask, link_mode):
    source = write_checkpoint(tmp_path / "m", shards=2)
    for path in source.iterdir():
        path.chmod(0o600)
    umask(mask)
    prepare(source, output=tmp_path / "out", link_mode=link_mode)
    replace_text(tmp_path / "a.yaml", "x", overwrite=False, head="")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    linked = {n for n in modes if n.endswith(".safetensors")} if link_mode == "auto" else set()
    assert modes == {name: 0o600 if name in linked else 0o666 & ~mask for name in modes}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "a.yaml").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_result_of_quantize_has_the_notes_and_a_run_that_keeps_layers_keeps_all(
    tmp_path, monkeypatch
):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    source, out = write_checkpoint(tmp_path / "m"), tmp_path / "out"
    result = quantize(source, options=QuantizeOptions(method="rtn"), output=out)
    assert [note for note in result.notes if "has no locks" in note]
    assert f"\nNote: {result.notes[-1]}\n" in result.to_text()
    shutil.rmtree(out)
    with monkeypatch.context() as patch:
        refuse(patch, "rename", errno.EXDEV, only=lambda source, _: str(source) == f"{out}.partial")
        text = refused(quantize, source, options=QuantizeOptions(method="rtn"), output=out)
    assert text.endswith(f"\n  mv {out}.partial {out}")
    # The command of the message and --resume both finish it.
    shutil.copytree(f"{out}.partial", tmp_path / "moved")
    quantize(source, options=QuantizeOptions(method="rtn"), output=out, resume=True)
    for name in ("model.safetensors.index.json", MANIFEST_NAME):
        assert (tmp_path / "moved" / name).read_bytes() == (out / name).read_bytes()


def test_files_of_onnx_graphs_where_no_mode_can_be_set(tmp_path, monkeypatch):
    refuse(monkeypatch, "chmod", errno.EPERM)
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    value = helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 64])
    graph = helper.make_graph([], "g", [], [value], [weight])
    files = trace.save_graph(helper.make_model(graph), tmp_path / "g.onnx", max_inline_bytes=0)
    assert [path.name for path in files] == ["g.onnx", "g.onnx.data"]

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from closed_files import as_user, open_directory
from written_outputs import list_files, names

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs import output as module
from vacc_deploy.outputs import partial as partial_module
from vacc_deploy.outputs import text_file
from vacc_deploy.outputs.file_system import check_space, host_tag
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.partial import clear_partial
from vacc_deploy.outputs.run_files import RUN_FILE_PREFIX
from vacc_deploy.outputs.seal import seal_json, seal_text
from vacc_deploy.outputs.text_file import replace_text
from vacc_deploy.outputs.writer import write_shard

MARKER = ".vacc-deploy-partial"


def message(function, *args, **options):
    with pytest.raises(OutputError) as caught:
        function(*args, **options)
    return str(caught.value)


def write(output_dir, content="new", *, overwrite=False, fail=None, command="prepare"):
    """Write a directory of two files through the function under test."""
    with output_directory(output_dir, overwrite=overwrite, source=None) as partial:
        (partial / "a.txt").write_text(content)
        list_files(partial, command=command)
        if fail is not None:
            raise fail


def test_the_directory_appears_only_at_the_end(tmp_path):
    out = tmp_path / "out"
    out.mkdir()  # an empty directory may stand there
    with output_directory(out, source=None) as partial:
        assert partial == tmp_path / "out.partial"
        (partial / "a.txt").write_text("x")
        assert names(out) == []
    assert names(tmp_path) == ["out"]
    assert names(out) == ["a.txt"]


@pytest.mark.parametrize("fail", [ValueError("x"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_an_error_or_an_interruption_leaves_nothing(tmp_path, fail):
    with pytest.raises(type(fail)):
        write(tmp_path / "out", fail=fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize("fail", [ValueError("x"), KeyboardInterrupt()], ids=repr)
def test_overwrite_keeps_the_old_one_until_the_end(tmp_path, fail):
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(type(fail)):
        write(out, overwrite=True, fail=fail)
    assert (out / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]
    with output_directory(out, overwrite=True, source=None) as partial:
        (partial / "a.txt").write_text("new")
        assert (out / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]
    assert names(out) == ["a.txt"]
    assert (out / "a.txt").read_text() == "new"


@pytest.mark.parametrize("fail", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_overwrite_puts_the_old_one_back_when_the_last_step_fails(tmp_path, monkeypatch, fail):
    out = tmp_path / "out"
    write(out, "old")
    rename = Path.rename

    def fails(self, target):
        if self.name == "out.partial":
            raise fail
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write(out, overwrite=True)
    assert (out / "a.txt").read_text() == "old"
    # What is finished lacks only its name; what was interrupted goes.
    kept = ["out.partial"] if isinstance(fail, OSError) else []
    assert names(tmp_path) == ["out", *kept]


def test_a_full_output_is_refused_without_overwrite(tmp_path):
    out = tmp_path / "out"
    write(out)
    assert message(write, out) == (
        f"{out} exists and is not empty. Give --overwrite to replace it, or choose another "
        "--output."
    )


def test_a_foreign_directory_is_never_deleted(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    assert message(write, out, overwrite=True) == (
        f"{out} is not empty and was not written by vacc-deploy (it has no {MANIFEST_NAME}), so "
        "--overwrite will not delete it. Remove it yourself, or choose another --output."
    )
    assert names(out) == ["thesis.tex"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_appears_during_the_run_is_never_deleted(tmp_path, overwrite):
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError),
        output_directory(out, overwrite=overwrite, source=None) as partial,
    ):
        (partial / "a.txt").write_text("x")
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["thesis.tex"]


def test_outputs_that_cannot_be(tmp_path):
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    def refused(path, *inputs):
        reads = SimpleNamespace(input_paths=lambda: inputs)
        return message(check_output, path, overwrite=True, source=reads)

    assert refused(source, source) == (
        f"The output {source} is the input {source} or contains it. Choose another --output."
    )
    assert "is the input" in refused(tmp_path, source)
    assert "is the input" in refused(source, tmp_path / "link")
    assert "is the input" in refused(source / "sub" / "..", source)
    assert refused(source / "out", source) == (
        f"The output {source / 'out'} lies inside the input {source}, which is never changed. "
        "Choose another --output."
    )
    assert refused(tmp_path / "no" / "out") == (
        f"{tmp_path / 'no'} does not exist. Create it, or choose another --output."
    )
    for name in ("link", "dangling"):
        path = tmp_path / name
        assert refused(path) == (
            f"{path} is a link to {os.readlink(path)}, and an output never replaces a link. Remove "
            "it, or choose another --output."
        )
    path = tmp_path / "file"
    assert refused(path) == f"{path} exists and is not a directory. Choose another --output."
    assert "file is not a directory" in refused(tmp_path / "file" / "out")


def test_a_parent_without_permission(tmp_path, monkeypatch):
    # Root may write everywhere, so the system's answer is replaced.
    monkeypatch.setattr(module.os, "access", lambda path, mode: path != tmp_path)
    text = message(check_output, tmp_path / "out", overwrite=False, source=None)
    assert text.startswith(
        f"{tmp_path / 'out'} cannot be written: Permission denied ({tmp_path} has"
    )
    assert " Choose another --output, or " in text


def test_a_file_or_a_partial_that_another_user_keeps_closed_is_told_by_its_own_name():
    with open_directory() as folder:
        (folder / "x.yaml").write_text(seal_text("old\n"))
        (folder / "out.partial").mkdir()
        (folder / "out.partial" / MARKER).touch(mode=0o600)
        folder.chmod(0o555)
        (folder / "out.partial").chmod(0o555)
        (folder / "out.partial" / MARKER).chmod(0)
        with as_user():
            texts = [
                message(replace_text, folder / "x.yaml", "new", overwrite=True, head="old"),
                message(replace_text, folder / "y.yaml", "new", overwrite=False, head=""),
                message(partial_module.claim, folder / "out.partial"),
            ]
        folder.chmod(0o755)
        (folder / "out.partial").chmod(0o755)
        assert (folder / "x.yaml").read_text() == seal_text("old\n")
        assert names(folder) == ["out.partial", "x.yaml"]
    places = (folder, folder, folder / "out.partial")
    for text, name, place in zip(
        texts, ("x.yaml", "y.yaml", "out.partial/.vacc"), places, strict=True
    ):
        assert text.startswith(f"{folder / name}")
        assert f"cannot be written: Permission denied ({place} has mode 0555, owned by" in text
        assert " Choose another --output, or " in text


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    def fails(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(text_file, "write_text", fails)
    with pytest.raises(OSError) as caught:
        replace_text(tmp_path / "x.yaml", "new", overwrite=False, head="")
    assert caught.value.filename == str(tmp_path / "x.yaml")


def test_what_a_killed_run_left_is_cleared(tmp_path):
    partial = tmp_path / "out.partial"
    (partial / "sub").mkdir(parents=True)
    (partial / MARKER).touch()
    (partial / "half.safetensors").write_text("half")
    (partial / "sub" / "x").write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    (partial / "link").symlink_to(outside)
    write(tmp_path / "out")
    assert names(tmp_path / "out") == ["a.txt", MANIFEST_NAME]
    assert names(outside) == ["keep"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_foreign_partial_is_refused(tmp_path, kind):
    partial = tmp_path / "out.partial"
    if kind == "file":
        partial.write_text("mine")
    else:
        partial.mkdir()
        (partial / "mine").touch()
    text = f"{partial} exists and is not ours. Remove it, then rerun."
    assert message(write, tmp_path / "out") == text
    assert names(tmp_path) == ["out.partial"]


def test_layers_that_another_command_can_resume_with_are_not_cleared(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for name in (MARKER, f"{RUN_FILE_PREFIX}shard-00001.json", "model-00001-of-00004.safetensors"):
        (partial / name).write_text("{}")
    text = message(write, tmp_path / "out")
    assert "holds finished weight files (1) of an interrupted quantize" in text
    assert "--overwrite" in text
    assert len(names(partial)) == 3
    write(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]


def test_a_concurrent_run_is_refused_and_disturbs_nothing(tmp_path):
    out = tmp_path / "out"
    with output_directory(out, source=None) as partial:
        (partial / "a.txt").write_text("first")
        text = f"Another run is writing {partial}. Wait for it to end."
        assert message(write, out) == text
        assert (partial / "a.txt").read_text() == "first"
    assert (out / "a.txt").read_text() == "first"


def test_a_run_that_ends_well_leaves_the_next_ones_partial_alone(tmp_path, monkeypatch):
    out, sync = tmp_path / "out", module.sync_directory

    def next_run_begins(directory):
        sync(directory)
        if directory == tmp_path:
            (tmp_path / "out.partial").mkdir()

    monkeypatch.setattr(module, "sync_directory", next_run_begins)
    write(out)
    assert names(tmp_path) == ["out", "out.partial"]


def test_a_claim_on_a_directory_that_was_just_removed_is_refused(tmp_path, monkeypatch):
    lock = fcntl.flock

    def removed_meanwhile(descriptor, how):
        (tmp_path / "out.partial" / MARKER).unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    assert "has just removed" in message(write, tmp_path / "out")


def test_a_full_disk_gives_the_bytes_written_and_leaves_nothing(tmp_path, monkeypatch):
    out, write_all = tmp_path / "out", module.os.fsync
    tensors = {"w": torch.zeros(2048)}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def run():
        with output_directory(out, source=None) as partial:
            write_shard(partial / "first.safetensors", tensors)
            monkeypatch.setattr(module.os, "fsync", full)
            write_shard(partial / "second.safetensors", tensors)

    text = message(run)
    monkeypatch.setattr(module.os, "fsync", write_all)
    assert text == (
        f"The disk is full: 16.2 KiB of {out} were written, then the file system refused more. "
        "Nothing was kept. Free space or choose another --output."
    )
    assert names(tmp_path) == []


def test_another_system_error_keeps_its_own_text(tmp_path):
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "out", fail=OSError(errno.EIO, "Input/output error"))
    assert names(tmp_path) == []


def test_check_space(tmp_path):
    check_space(tmp_path / "out", 1)
    text = message(check_space, tmp_path / "out", 1 << 60)
    assert text.startswith(f"{tmp_path / 'out'} needs 1073741824.0 GiB, its file system has ")
    assert text.endswith(" free. Free space or choose another --output.")


def test_files_of_the_user_in_an_output_are_never_deleted(tmp_path):
    out = tmp_path / "out"
    write(out)
    for name in ("thesis.tex", "notes.md"):
        (out / name).write_text("mine")
    (out / "runs").mkdir()
    assert message(write, out, overwrite=True) == (
        f"{out} holds what is not proven to be ours and unchanged, so --overwrite will not delete "
        f"it:\n  - notes.md: not listed in {MANIFEST_NAME}\n"
        f"  - runs: a directory that is not listed in {MANIFEST_NAME}\n"
        f"  - thesis.tex: not listed in {MANIFEST_NAME}\n"
        "Move these files away, or choose another --output."
    )
    assert names(out) == ["a.txt", "notes.md", "runs", "thesis.tex", MANIFEST_NAME]


def test_the_times_of_the_command_that_made_an_output_are_ours_though_no_manifest_lists_them(
    tmp_path,
):
    out = tmp_path / "out"
    write(out, command="quantize")
    times = out / "quantize_timing.json"
    times.write_text(seal_json({"seconds": 1.5}))
    write(out, command="quantize", overwrite=True)
    assert names(out) == ["a.txt", MANIFEST_NAME]
    for text in ("{}", "[]", "", seal_json({"seconds": 1.5}).replace("1.5", "2.5")):
        times.write_text(text)
        refused = message(write, out, overwrite=True)
        assert "  - quantize_timing.json: changed since it was written\n" in refused
    times.rename(out / "my_timing.json")
    assert "  - my_timing.json: not listed" in message(write, out, overwrite=True)


def test_what_a_run_wrote_for_itself_never_stays_in_an_output(tmp_path):
    out = tmp_path / "out"
    with output_directory(out, source=None) as partial:
        (partial / f"{RUN_FILE_PREFIX}run.json").write_text("{}")
        list_files(partial)
    assert names(out) == [MANIFEST_NAME]
    (out / f"{RUN_FILE_PREFIX}run.json").write_text("left by a kill")
    write(out, overwrite=True)
    for name in ("notes.txt", "run.json.bak", "shard-1.json", "lock-0", "partial2"):
        mine = out / f"{RUN_FILE_PREFIX}{name}"
        mine.write_text("x")
        assert f"  - {mine.name}: not listed" in message(write, out, overwrite=True)
        mine.unlink()
    (out / f"{RUN_FILE_PREFIX}run.json").mkdir()
    assert f"  - {RUN_FILE_PREFIX}run.json: a directory" in message(write, out, overwrite=True)


def test_a_cleared_partial_directory_keeps_what_is_named_and_loses_its_own_files_first(
    tmp_path, monkeypatch
):
    partial, removed = tmp_path / "out.partial", []
    (partial / "int8").mkdir(parents=True)
    (partial / "fp16").mkdir()
    own = [f"{RUN_FILE_PREFIX}{name}" for name in ("run", "shard-1", "shard-2")]
    for name in (MARKER, *own, "a", "b", "int8/a", "int8/b", "fp16/a"):
        (partial / name).touch()
    plain = partial_module.remove_path
    monkeypatch.setattr(
        partial_module, "remove_path", lambda path: (removed.append(path), plain(path))
    )
    clear_partial(partial, keep={own[0], own[1], "a", "int8/a"})
    assert removed[0].name == own[2]
    assert names(partial) == sorted([MARKER, own[0], own[1], "a", "int8"])
    assert names(partial / "int8") == ["a"]


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"files": ["a.txt"]}'])
def test_a_manifest_that_lists_nothing_protects_everything(tmp_path, manifest):
    out = tmp_path / "out"
    write(out)
    (out / MANIFEST_NAME).write_text(manifest)
    text = message(write, out, overwrite=True)
    assert f"  - {MANIFEST_NAME}: " in text and ", so it proves nothing of: a.txt\n" in text


def test_a_directory_within_an_output_has_a_manifest_of_its_own(tmp_path):
    out = tmp_path / "out"

    def write_nested():
        with output_directory(out, overwrite=True, source=None) as partial:
            write(partial / "inner")
            list_files(partial)

    write_nested()
    write_nested()
    (out / "inner" / "mine").write_text("x")
    assert "  - inner/mine: not listed" in message(write_nested)
    (out / "inner" / "mine").unlink()
    (out / "a.txt").mkdir()
    assert "  - a.txt: a directory" in message(write_nested)


@pytest.mark.parametrize("place", [".", "..", "sub/.."])
def test_the_working_directory_is_no_output(tmp_path, monkeypatch, place):
    here = tmp_path / "a" / "b"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    for overwrite in (False, True):
        assert message(check_output, Path(place), overwrite=overwrite, source=None) == (
            f"The output {Path(place)} is the working directory or contains it. Choose another "
            "--output."
        )


def test_replace_text_is_whole_and_replaces_its_own_files_only(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.yaml", []
    fsync = module.os.fsync
    monkeypatch.setattr("os.fsync", lambda descriptor: (synced.append(1), fsync(descriptor)))
    (tmp_path / "a.yaml.partial").write_text("mine")
    sealed = seal_text("# ours\n模\n")
    replace_text(path, sealed, overwrite=False, head="# ours")
    assert path.read_text("utf-8") == sealed
    assert synced
    assert path.stat().st_mode & 0o777 == (tmp_path / "a.yaml.partial").stat().st_mode & 0o777
    text = f"{path} exists already. Add --overwrite to replace it."
    assert message(replace_text, path, "x", overwrite=False, head="# ours") == text
    for _ in range(2):  # the same text again: nothing is lost
        replace_text(path, "# ours, new", overwrite=True, head="# ours")
        assert path.read_text() == "# ours, new"
    for edited in (path.read_text(), f"{sealed}# a note\n", sealed.replace("模", "型")):
        path.write_text(edited)
        assert message(replace_text, path, "x", overwrite=True, head="# ours") == (
            f"{path} was changed since it was written, or is of an earlier version, so it "
            "will not be replaced. Remove it yourself, or choose another --output."
        )
    path.write_text("# mine\n# ours")
    assert message(replace_text, path, "x", overwrite=True, head="# ours") == (
        f"{path} was not written by vacc-deploy, so it will not be replaced. Remove it yourself, "
        "or choose another --output."
    )
    assert path.read_text() == "# mine\n# ours"
    replace_text(path, "any", overwrite=True, head="")
    assert names(tmp_path) == ["a.yaml", "a.yaml.partial"]
    assert (tmp_path / "a.yaml.partial").read_text() == "mine"


def test_replace_text_removes_what_a_killed_process_left(tmp_path):
    path, hidden = tmp_path / "x.yaml", f".x.yaml.{host_tag()}0a1b"
    # Above any number of a process; then one that lives; then files of others.
    abandoned = tmp_path / f"{hidden}.99999999.partial"
    others = [
        f"{hidden}.{os.getpid()}.partial",
        f"{hidden}.partial",
        f".y.yaml.{host_tag()}.99999999.partial",
        # Of another host, which may still have this process.
        ".x.yaml.0123456789abcdef.99999999.partial",
    ]
    for name in (abandoned.name, *others):
        (tmp_path / name).touch()
    replace_text(path, "text", overwrite=False, head="")
    assert names(tmp_path) == sorted([*others, "x.yaml"])


def test_replace_text_refuses_what_is_no_file(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    options = {"overwrite": True, "head": ""}
    assert message(replace_text, tmp_path, "x", **options) == (
        f"{tmp_path} exists and is not a file. Choose another --output."
    )
    assert "is a link to" in message(replace_text, tmp_path / "dangling", "x", **options)
    assert message(replace_text, tmp_path / "no" / "a", "x", **options) == (
        f"{tmp_path / 'no'} does not exist. Create it, or choose another --output."
    )

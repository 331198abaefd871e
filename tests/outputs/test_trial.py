"""What only the end of a run needs is looked at, and tried, at its beginning."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_builders import write_checkpoint
from closed_files import as_user, open_directory
from faults import error, refuse
from written_outputs import list_files, names, refused

from vacc_deploy.errors import OutputError
from vacc_deploy.outputs import trial
from vacc_deploy.outputs.output import output_directory, try_output
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.prepare import prepare
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

ROOT = Path(__file__).resolve().parents[2]


def write(out, *, overwrite=False):
    with output_directory(out, overwrite=overwrite, source=None) as partial:
        (partial / "a.txt").write_text("text")
        list_files(partial)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_directory_that_is_bound_to_another_of_the_same_file_system(tmp_path):
    for name in ("other", "my out", "new.partial"):
        (tmp_path / name).mkdir()
    write(tmp_path / "old")
    (tmp_path / "old" / "int8").mkdir()
    texts = {}
    for name in ("my out", "new.partial", "old/int8"):
        command = ["mount", "--bind", str(tmp_path / "other"), str(tmp_path / name)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this container cannot mount")
        try:
            out = tmp_path / name.split("/")[0].removesuffix(".partial")
            texts[name] = refused(check_output, out, overwrite=True, source=None)
        finally:
            subprocess.run(["umount", str(tmp_path / name)], check=True)
    assert texts["my out"].startswith(f"{tmp_path / 'my out'} is a mount point, so the finished")
    assert texts["new.partial"].startswith(f"{tmp_path / 'new.partial'} is a mount point, and ")
    assert texts["old/int8"].startswith(f"{tmp_path / 'old' / 'int8'} is a mount point within an ")


def test_an_output_on_another_file_system(tmp_path, monkeypatch):
    out, plain = tmp_path / "out", Path.lstat
    out.mkdir()

    def lstat(path):
        state = plain(path)
        return os.stat_result((*state[:2], state.st_dev + 1, *state[3:])) if path == out else state

    monkeypatch.setattr(Path, "lstat", lstat)
    assert refused(check_output, out, overwrite=False, source=None) == (
        f"{out} lies on another file system than {tmp_path}, so the finished output cannot take "
        "its place. Choose another --output."
    )


@pytest.mark.parametrize(("flags", "letters"), [(0x10, "i"), (0x20, "a"), (0x30, "ia")])
@pytest.mark.parametrize("name", [".", "out", "out.partial"])
def test_a_directory_that_may_not_be_changed(tmp_path, monkeypatch, flags, letters, name):
    for inner in ("out", "out.partial"):
        (tmp_path / inner).mkdir()
    place = (tmp_path / name).resolve()

    def ioctl(descriptor, number, size):
        is_place = os.path.samestat(os.fstat(descriptor), place.stat())
        return (flags if is_place else 0).to_bytes(8, sys.byteorder)

    monkeypatch.setattr(trial.fcntl, "ioctl", ioctl)
    assert refused(check_output, tmp_path / "out", overwrite=False, source=None) == (
        f"{tmp_path / 'out'} cannot be written: {place} may not be changed (attribute {letters}). "
        f"Choose another --output, or run: chattr -{letters} {place}"
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_directory_of_another_user_where_only_its_owner_may_rename_it():
    with open_directory() as folder:
        folder.chmod(0o1777)
        for name in ("a", "b.partial"):
            (folder / name).mkdir(mode=0o777)
        with as_user():
            texts = [
                refused(check_output, folder / name, overwrite=False, source=None) for name in "ab"
            ]
            try_output(folder / "c", overwrite=False, source=None)
        assert names(folder) == ["a", "b.partial"]
        for text, name in zip(texts, ("a", "b.partial"), strict=True):
            assert text.startswith(f"{folder / name} belongs to another user, and {folder} lets ")
        folder.chmod(0o777)
        write(folder / "d")
        with as_user():
            text = refused(check_output, folder / "d", overwrite=True, source=None)
        assert "Permission denied" in text and "Choose another --output" in text


def test_a_path_that_leaves_no_room_for_the_files_in_it(tmp_path):
    text = refused(check_output, tmp_path / ("x/" * 2000) / "out", overwrite=False, source=None)
    assert "the whole path of the output has 4," in text and "expected at most 3,840" in text


# ---- the renames -------------------------------------------------------------------------------

RENAMES = (errno.EXDEV, errno.EBUSY, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@pytest.mark.parametrize("number", RENAMES, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "trying", [write, lambda out: try_output(out, overwrite=False, source=None)]
)
def test_a_file_system_that_renames_no_directory(tmp_path, monkeypatch, number, trying):
    refuse(monkeypatch, "rename", number)
    assert refused(trying, tmp_path / "out") == (
        f"{tmp_path / 'out'} could not get its name when it is finished: the file system of "
        f"{tmp_path} does not let a directory be renamed ({os.strerror(number)}). Choose another "
        "--output."
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "is_empty"),
    [
        *((errno.EBUSY, True), (errno.EPERM, True)),
        *((errno.EXDEV, False), (errno.EBUSY, False), (errno.EPERM, False)),
    ],
)
def test_an_output_that_cannot_be_renamed(tmp_path, monkeypatch, number, is_empty):
    # So do overlays with what lies in a lower layer, and mounts that another path leads to.
    out = tmp_path / "out"
    out.mkdir() if is_empty else write(out)
    before = names(out)
    refuse(monkeypatch, "rename", number, only=lambda source, _: Path(source) == out)
    assert refused(write, out, overwrite=True) == (
        f"{out} exists, and the file system does not let it be renamed to make place "
        f"({os.strerror(number)}). Remove it yourself, or choose another --output."
    )
    assert (names(tmp_path), names(out)) == (["out"], before)


def test_an_empty_directory_in_a_lower_layer_of_an_overlay_can_be_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    refuse(monkeypatch, "rename", errno.EXDEV, only=lambda source, _: Path(source) == out)
    write(out)
    assert (out / "a.txt").read_text() == "text"


def test_the_longest_name_is_tried(tmp_path, monkeypatch):
    tried, plain = [], os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (tried.append((a, b)), plain(a, b)))
    write(tmp_path / "out")
    del tried[:]
    write(tmp_path / "out", overwrite=True)
    names_tried = [(Path(a).name, Path(b).name) for a, b in tried]
    aside = f".out.replaced-{os.getpid()}"
    assert names_tried[1:] == [
        *(("out", aside), (aside, "out")),
        *(("out", aside), ("out.partial", "out")),
    ]
    assert all(len(name) == len(aside) for name in names_tried[0])


def test_an_interruption_between_the_two_renames_leaves_the_older_output(tmp_path, monkeypatch):
    out, plain = tmp_path / "out", os.rename
    write(out)

    def rename(source, target):
        plain(source, target)
        if Path(source) == out:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        write(out, overwrite=True)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("calls", range(1, 5))
@pytest.mark.parametrize("what", ["nothing", "empty", "older"])
def test_a_kill_at_each_call_of_the_trial_is_put_right_by_the_next_run(tmp_path, what, calls):
    out = tmp_path / "out"
    if what == "empty":
        out.mkdir()
    elif what == "older":
        write(out)
    program = (
        "import os, pathlib, signal, sys\n"
        "from vacc_deploy.outputs import output\n"
        "left = int(sys.argv[2])\n"
        "def counted(call):\n"
        "    def made(*args, **options):\n"
        "        global left\n"
        "        call(*args, **options)\n"
        "        left -= 1\n"
        "        if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return made\n"
        "plain = output.try_renames\n"
        "def trying(*args):\n"
        "    os.rename, os.mkdir, os.rmdir = map(counted, (os.rename, os.mkdir, os.rmdir))\n"
        "    plain(*args)\n"
        "output.try_renames = trying\n"
        "output.try_output(pathlib.Path(sys.argv[1]), overwrite=True, source=None)\n"
    )
    command = [sys.executable, "-c", program, str(out), str(calls)]
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert process.returncode == -signal.SIGKILL
    write(out, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert (out / "a.txt").read_text() == "text"


# ---- before the work ---------------------------------------------------------------------------


def test_quantize_tries_before_it_reads_a_weight_or_a_text(tmp_path, monkeypatch):
    source, out = write_checkpoint(tmp_path / "m"), tmp_path / "out"
    refuse(monkeypatch, "rename", errno.EXDEV)

    def fails(*args, **options):
        raise AssertionError("worked before the trial")

    monkeypatch.setattr("vacc_deploy.quantize.plan.check_weights", fails)
    options = QuantizeOptions(method="rtn")
    assert "could not get its name" in refused(quantize, source, options=options, output=out)
    assert "could not get its name" in refused(
        quantize, source, options=options, output=out, resume=True
    )
    assert names(tmp_path) == ["m"]


def test_a_dry_run_tries_nothing(tmp_path, monkeypatch):
    source, out = write_checkpoint(tmp_path / "m"), tmp_path / "out"
    refuse(monkeypatch, "rename", errno.EXDEV)
    refuse(monkeypatch, "mkdir", errno.EROFS)
    assert prepare(source, output=out, dry_run=True).dry_run
    assert quantize(source, options=QuantizeOptions(method="rtn"), output=out, dry_run=True).dry_run
    assert names(tmp_path) == ["m"]


def test_prepare_claims_its_output_before_it_reads_the_weights(tmp_path):
    source, out, seen = write_checkpoint(tmp_path / "m"), tmp_path / "out", []

    class Watch(Progress):
        def start(self, what, *args):
            seen.append((what, (tmp_path / "out.partial").is_dir()))

    prepare(source, output=out, progress=Watch())
    assert seen and all(is_there for what, is_there in seen if "older output" not in what)


def test_an_error_of_the_trial_keeps_the_layers_of_an_interrupted_run(tmp_path, monkeypatch):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for name in (".vacc-deploy-partial", ".vacc-deploy-shard-00001.json", "x.safetensors"):
        (partial / name).write_text("{}")
    before = names(partial)
    refuse(monkeypatch, "rename", errno.EXDEV)
    refused(try_output, tmp_path / "out", overwrite=True, source=None)
    assert names(partial) == before
    monkeypatch.undo()
    try_output(tmp_path / "out", overwrite=True, source=None)
    assert names(partial) == before


def test_a_failed_disk_is_no_file_system_without_a_rename(tmp_path, monkeypatch):
    def fails(*args):
        raise error(errno.ENOSPC)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OutputError, match="The disk is full"):
        write(tmp_path / "out")
    assert names(tmp_path) == []

"""What --overwrite may delete: the files of an output that are proven to be ours and unchanged."""

import errno
import json
import os
import shutil
import time

import pytest
from checkpoint_builders import write_checkpoint
from written_outputs import list_files

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import OutputError
from vacc_deploy.json_files import dump_json
from vacc_deploy.outputs import output, proof
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.proof import prove, remove_proven
from vacc_deploy.outputs.seal import seal_json
from vacc_deploy.prepare import prepare

WEIGHTS = "model.safetensors"
ONLY_COPY = (
    f"{WEIGHTS}: the only copy of these weights: the file that was linked here has no other name"
)
CHANGED = "changed since it was written"


@pytest.fixture
def out(tmp_path):
    """Return an output of two files."""
    directory = tmp_path / "out"
    directory.mkdir()
    for name in ("a.txt", "b.txt"):
        (directory / name).write_text(f"text of {name}")
    list_files(directory)
    return directory


def problems(directory):
    return sorted(prove(directory).problems)


def flip(path):
    """Change one byte of a file; size and times stay."""
    data, state = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def edit_manifest(directory, **values):
    path = directory / MANIFEST_NAME
    manifest = json.loads(path.read_bytes()) | values
    del manifest["seal"]
    path.write_text(dump_json(manifest))


def test_unchanged_files_are_proven_and_removed(out):
    assert problems(out) == []
    assert remove_proven(out) == []
    assert not out.exists()


def test_an_empty_directory_holds_nothing_to_lose(tmp_path):
    assert problems(tmp_path) == []


@pytest.mark.parametrize("change", [flip, lambda path: path.write_text("longer than it was")])
def test_a_changed_file_is_named_and_everything_stays(out, change):
    change(out / "a.txt")
    before = contents(out)
    assert problems(out) == [f"a.txt: {CHANGED}"]
    assert remove_proven(out) == [f"a.txt: {CHANGED}"]
    with pytest.raises(OutputError) as caught:
        check_output(out, overwrite=True, source=None)
    assert str(caught.value) == (
        f"{out} holds what is not proven to be ours and unchanged, so --overwrite will not delete "
        f"it:\n  - a.txt: {CHANGED}\nMove these files away, or choose another --output."
    )
    assert contents(out) == before


def test_a_file_that_was_moved_away_is_no_obstacle(out, tmp_path):
    (out / "a.txt").rename(tmp_path / "a.txt")
    assert problems(out) == []


def test_only_files_are_opened(out, tmp_path):
    for name in ("a.txt", "b.txt"):
        (out / name).unlink()
    (out / "a.txt").symlink_to(tmp_path)
    os.mkfifo(out / "b.txt")
    assert problems(out) == [
        "a.txt: a link, and was written as a file",
        "b.txt: no file, and was written as a file",
    ]


@pytest.mark.parametrize("entry", [{}, 5, None, {"bytes": 13}, {"bytes": "13", "sha256": "0"}, []])
def test_an_entry_without_a_hash_proves_nothing(out, entry):
    files = json.loads((out / MANIFEST_NAME).read_bytes())["files"]
    edit_manifest(out, files=files | {"a.txt": entry})
    assert problems(out) == [f"a.txt: {MANIFEST_NAME} gives no hash of it"]


@pytest.mark.parametrize(
    "values",
    [
        *({"format_version": version} for version in (None, 0, 2, "1", True, 1.0)),
        *({"tool": tool} for tool in (None, [], {}, {"name": "other"}, "vacc-deploy")),
        *({"command": command} for command in (None, "x", "yaml", [])),
        {"files": None},
        {"files": ["a.txt"]},
    ],
    ids=str,
)
def test_a_manifest_of_others_proves_nothing(out, values):
    edit_manifest(out, **values)
    assert problems(out) == [
        f"{MANIFEST_NAME}: no manifest of vacc-deploy in format 1, so it proves nothing of: a.txt, "
        "b.txt"
    ]


def test_a_manifest_that_was_edited_is_kept_like_every_other_file(out):
    path = out / MANIFEST_NAME
    whole = path.read_text()
    for text in (whole.replace('"m"', '"n"'), f"{whole}\n", whole.replace("  ", "\t")):
        path.write_text(text)
        assert problems(out)[0].startswith(f"{MANIFEST_NAME}: {CHANGED}, so it proves nothing of:")
    path.unlink()
    path.symlink_to(out.parent / "elsewhere.json")
    (out.parent / "elsewhere.json").write_text(whole)
    assert problems(out)[0].startswith(f"{MANIFEST_NAME}: not a file, so it proves nothing")


def test_a_manifest_that_proves_nothing_and_lies_alone_ends_no_line_with_a_blank(out):
    edit_manifest(out, command="x")
    for name in ("a.txt", "b.txt"):
        (out / name).unlink()
    assert problems(out) == [
        f"{MANIFEST_NAME}: no manifest of vacc-deploy in format 1, so it does not prove itself"
    ]


def test_a_manifest_of_an_earlier_version_has_no_seal(out):
    edit_manifest(out)
    assert problems(out) == []
    (out / MANIFEST_NAME).write_text((out / MANIFEST_NAME).read_text() + " ")
    assert problems(out) != []


def test_names_in_a_manifest_lead_to_no_other_place(out, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / MANIFEST_NAME).write_bytes((out / MANIFEST_NAME).read_bytes())
    (tmp_path / "thesis").write_text("x")
    sha = {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    names = ("../thesis", f"{tmp_path}/thesis", f"../mine/{MANIFEST_NAME}", f"in/{MANIFEST_NAME}")
    files = json.loads((out / MANIFEST_NAME).read_bytes())["files"]
    edit_manifest(out, files=files | {name: sha for name in names})
    (out / "in").symlink_to(tmp_path / "mine")
    assert problems(out) == [f"in: not listed in {MANIFEST_NAME}"]
    (out / "in").unlink()
    assert remove_proven(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "thesis"]
    assert (tmp_path / "mine" / MANIFEST_NAME).is_file()


def test_a_directory_of_a_format_is_proven_by_both_manifests(out):
    inner = out / "int8"
    inner.mkdir()
    (inner / "c.txt").write_text("c")
    list_files(inner, command="quantize")
    list_files(out)
    assert problems(out) == []
    (inner / "c.txt").write_text("d")
    assert problems(out) == [f"int8/c.txt: {CHANGED}"]
    # A manifest of its own that fits the file, but is not the one that was written.
    first = (inner / MANIFEST_NAME).read_bytes()
    (inner / MANIFEST_NAME).unlink()
    list_files(inner, command="quantize")
    assert problems(out) == [f"int8/{MANIFEST_NAME}: {CHANGED}"]
    (inner / MANIFEST_NAME).write_bytes(first)
    (inner / "c.txt").write_text("c")
    assert remove_proven(out) == []
    assert not out.exists()


# ---- linked weights ----------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "in")


@pytest.mark.parametrize("link_mode", ["auto", "hardlink", "symlink", "copy"])
def test_an_output_of_prepare_is_replaced_in_every_link_mode(tmp_path, source, link_mode):
    before = (source / WEIGHTS).read_bytes()
    for overwrite in (False, True):
        prepare(source, output=tmp_path / "out", link_mode=link_mode, overwrite=overwrite)
    assert (source / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("link_mode", ["hardlink", "symlink"])
def test_weights_that_were_put_in_place_of_a_link_are_kept(tmp_path, source, link_mode):
    out = tmp_path / "out"
    prepare(source, output=out, link_mode=link_mode)
    mine = tmp_path / "finetuned"
    shutil.copy(source / WEIGHTS, mine)
    flip(mine)  # the same size and the same header
    data = mine.read_bytes()
    mine.replace(out / WEIGHTS)
    with pytest.raises(OutputError) as caught:
        prepare(source, output=out, overwrite=True)
    assert f"  - {ONLY_COPY}\n" in str(caught.value)
    assert (out / WEIGHTS).read_bytes() == data


def test_weights_whose_source_was_removed_are_kept(tmp_path, source):
    out, other = tmp_path / "out", write_checkpoint(tmp_path / "other")
    prepare(source, output=out, link_mode="hardlink")
    shutil.rmtree(source)
    assert problems(out) == [ONLY_COPY]
    # A second name within the output goes with the first.
    os.link(out / WEIGHTS, out / "copy.safetensors")
    assert problems(out)[0].startswith("copy.safetensors: not listed")
    (out / "copy.safetensors").rename(tmp_path / "kept.safetensors")
    prepare(other, output=out, overwrite=True)
    assert (tmp_path / "kept.safetensors").stat().st_nlink == 1


def test_two_linked_names_of_one_file_do_not_prove_each_other(tmp_path):
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "a.safetensors").write_text("weights")
    os.link(directory / "a.safetensors", directory / "b.safetensors")
    list_files(directory, linked=("a.safetensors", "b.safetensors"))
    assert [line.partition(":")[0] for line in problems(directory)] == [
        "a.safetensors",
        "b.safetensors",
    ]
    os.link(directory / "a.safetensors", tmp_path / "c.safetensors")
    assert problems(directory) == []


# ---- reading once, and the moment between proof and deletion -------------------------------------


def test_what_was_read_once_is_not_read_again_until_it_changes(out, monkeypatch):
    read, plain = [], proof.fingerprint_file
    monkeypatch.setattr(
        proof, "fingerprint_file", lambda path: (read.append(path.name), plain(path))[1]
    )
    monkeypatch.setattr(proof, "_SETTLED_NS", -(10**10))
    assert problems(out) == problems(out) == []
    assert sorted(read) == ["a.txt", "b.txt"]
    flip(out / "a.txt")
    assert problems(out) == [f"a.txt: {CHANGED}"]
    assert read[2:] == ["a.txt"]
    moved = out.rename(out.with_name("moved"))
    assert problems(moved) == [f"a.txt: {CHANGED}"]
    assert read[3:] == []


def test_a_file_that_was_just_written_is_read_again(out, monkeypatch):
    read, plain = [], proof.fingerprint_file
    monkeypatch.setattr(
        proof, "fingerprint_file", lambda path: (read.append(path.name), plain(path))[1]
    )
    assert problems(out) == problems(out) == []
    assert len(read) == 4
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 62)
    assert problems(out) == problems(out) == []
    assert len(read) == 6


def test_what_changes_while_the_run_works_is_kept(out):
    with pytest.raises(OutputError), output_directory(out, overwrite=True, source=None) as partial:
        (partial / "a.txt").write_text("new")
        flip(out / "a.txt")
    assert not (out.parent / "out.partial").exists()
    assert sorted(contents(out)) == ["a.txt", "b.txt", MANIFEST_NAME]


def test_what_changes_after_the_last_look_is_kept_under_another_name(out, monkeypatch):
    plain, notes = output._put_in_place, []

    def change_late(partial, target):
        plain(partial, target)
        (aside,) = target.parent.glob(".out.replaced-*")
        flip(aside / "a.txt")

    monkeypatch.setattr(output, "_put_in_place", change_late)
    with output_directory(out, overwrite=True, say=notes.append, source=None) as partial:
        (partial / "a.txt").write_text("new")
    (aside,) = out.parent.glob(".out.kept-*")
    assert notes == [
        f"{aside} holds what stays of an older output (a.txt: {CHANGED}). Move away what is yours, "
        "then remove it."
    ]
    assert len(contents(aside)) == 3 and (out / "a.txt").read_text() == "new"


def test_what_cannot_be_removed_is_named(out, monkeypatch):
    plain = os.unlink

    def unlink(path, **options):
        if path.name == "a.txt":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        plain(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    assert remove_proven(out) == ["a.txt: Operation not permitted"]
    assert sorted(contents(out)) == ["a.txt", MANIFEST_NAME]


def test_what_changes_between_its_proof_and_its_end_is_kept(out, monkeypatch):
    plain = proof.prove

    def change(directory):
        found = plain(directory)
        flip(directory / "b.txt")
        return found

    monkeypatch.setattr(proof, "prove", change)
    assert remove_proven(out) == [f"b.txt: {CHANGED}"]
    # With what says whose the rest is.
    assert sorted(contents(out)) == ["b.txt", MANIFEST_NAME]


def test_times_of_a_run_carry_a_seal(out):
    edit_manifest(out, command="quantize")
    times = out / "quantize_timing.json"
    times.write_text(seal_json({"seconds": 1.5, "phases": {"a": 1e-09}}))
    assert problems(out) == []
    times.unlink()
    os.mkfifo(times)
    assert problems(out) == [f"quantize_timing.json: {CHANGED}"]


def test_what_changes_while_the_output_is_read_stays(out, monkeypatch):
    plain = proof._hash

    def hash_and_edit(path):
        (out / MANIFEST_NAME).write_text("notes of a user")
        return plain(path)

    monkeypatch.setattr(proof, "_hash", hash_and_edit)
    assert remove_proven(out) == [f"{MANIFEST_NAME}: {CHANGED}"]
    assert (out / MANIFEST_NAME).read_text() == "notes of a user"


def test_two_names_of_one_file_go_both(tmp_path):
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "LICENSE").write_text("text")
    os.link(directory / "LICENSE", directory / "LICENSE.txt")
    list_files(directory)
    assert remove_proven(directory) == [] and not directory.exists()


def test_what_is_left_of_an_older_output_gets_no_name_back(tmp_path):
    left = tmp_path / ".out.replaced-7"
    left.mkdir()
    (left / "notes.txt").write_text("mine")
    with output_directory(tmp_path / "out", source=None) as folder:
        (folder / "new.txt").write_text("new")
    assert os.listdir(tmp_path / "out") == ["new.txt"]
    assert (tmp_path / ".out.kept-7" / "notes.txt").read_text() == "mine"


def test_a_leftover_with_the_number_of_this_process_blocks_no_run(out):
    left = out.with_name(f".out.replaced-{os.getpid()}")
    left.mkdir()
    (left / "notes.txt").write_text("mine")
    with output_directory(out, overwrite=True, source=None) as folder:
        (folder / "new.txt").write_text("new")
    kept = out.with_name(f".out.kept-{os.getpid()}")
    assert os.listdir(out) == ["new.txt"] and (kept / "notes.txt").read_text() == "mine"
    assert not list(out.parent.glob(".out.replaced-*"))


def test_an_older_output_that_another_run_removes_meanwhile_is_no_error(out, monkeypatch):
    aside = out.with_name(".out.replaced-7")
    shutil.copytree(out, aside)

    def vanish(path):
        shutil.rmtree(aside)
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))

    monkeypatch.setattr(proof, "_doubt", lambda file, names: vanish(file.path))
    output.remove_leftovers(out, print)

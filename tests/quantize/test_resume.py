"""Runs of ``quantize`` that are killed, stopped or fail, and what ``--resume`` makes of them."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_builders import write_checkpoint

from vacc_deploy.checkpoint import JOURNAL_NAME, MANIFEST_NAME
from vacc_deploy.checkpoint import output as output_module
from vacc_deploy.cli.signals import resume_command
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import OutputError, QuantizationError, StoppedError
from vacc_deploy.formats.layouts import COMPRESSED_TENSORS, FORMATS, FP16, GPTQ
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.progress import Progress, RunControl
from vacc_deploy.quantize import finish, shards
from vacc_deploy.quantize import forecast as estimate_module
from vacc_deploy.quantize import identity as identity_module
from vacc_deploy.quantize import journal as journal_module
from vacc_deploy.quantize import row_buffers as hidden_rows_module
from vacc_deploy.quantize import run as pipeline
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.journal import Journal, read_journal
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize
from vacc_deploy.solver.records import LinearRecord

NUM_LAYERS, SHARDS = 3, 5
CPU = choose_compute("cpu")
RTN = QuantizeOptions("rtn")


def contents(directory):
    """Return every file below ``directory`` with its bytes, the times of the run aside."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != TIMING_NAME
    }


class Listener(Progress):
    """Keeps the warnings, and the layers that were finished before."""

    def __init__(self):
        self.warnings, self.skipped = [], []

    def skip(self, amount=1, note=""):
        self.skipped.append(note)

    def warn(self, message):
        self.warnings.append(message)


class StopAfter(RunControl):
    """Asks to stop once ``count`` layers were seen."""

    def __init__(self, count, signum=signal.SIGINT):
        self.left, self.signum, self.told = count, signum, None

    def stop_signal(self):
        self.left -= 1
        return self.signum if self.left <= 0 else None

    def kept(self, finished, total):
        self.told = (finished, total)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("".join(f"{i * 7919 % 10007} words, " for i in range(3000)), "utf-8")
    return path


@pytest.fixture(scope="module")
def gptq(words):
    return QuantizeOptions("gptq", (CalibrationSource("text", words),), 24, 32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a checkpoint in it, beside which every test writes."""
    directory = tmp_path_factory.mktemp("resume")
    write_checkpoint(directory / "model", num_layers=NUM_LAYERS)
    return directory


@pytest.fixture(scope="module")
def expected(place, gptq):
    """The files of an uninterrupted run, by method."""
    result = {}
    for options in (gptq, RTN):
        output = place / f"whole-{options.method}"
        quantize(place / "model", options=options, output=output)
        result[options.method] = contents(output)
    return result


@pytest.fixture
def output(place):
    yield place / "out"
    for path in place.iterdir():
        if "out" in path.name:
            shutil.rmtree(path)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killed(arm, *arguments, **options):
    """Run ``quantize`` in a process of its own that ``arm`` has set up to kill itself."""

    def child():
        arm()
        quantize(*arguments, **options)

    with warnings.catch_warnings():
        # Newer interpreters warn of forking beside the threads of a test runner.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def before_call(module, name, when=lambda *arguments: True):
    """Return an ``arm`` that kills before the first call of ``module.name`` that ``when`` takes."""

    def arm():
        plain = getattr(module, name)

        def replaced(*arguments, **options):
            if when(*arguments):
                kill()
            return plain(*arguments, **options)

        setattr(module, name, replaced)

    return arm


def after_call(module, name, when=lambda *arguments: True):
    """As ``before_call``, but once the call has returned."""

    def arm():
        plain = getattr(module, name)

        def replaced(*arguments, **options):
            value = plain(*arguments, **options)
            if when(*arguments):
                kill()
            return value

        setattr(module, name, replaced)

    return arm


def is_shard(number):
    return lambda path, *_: path.name.startswith(f"model-{number + 1:05d}")


def torn_line():
    """Write half of the journal's line of layer 1, then kill."""
    plain = Journal._write

    def half(self, line):
        if json.loads(line.partition(b" ")[2])["shard"] == 2:
            self._file.write(line[: len(line) // 2])
            kill()
        plain(self, line)

    Journal._write = half


def half_shard():
    """Leave half of layer 1's shard, then kill."""
    plain = shards.write_shard

    def half(path, tensors):
        written = plain(path, tensors)
        if is_shard(2)(path):
            os.truncate(path, written.num_bytes // 2)
            kill()
        return written

    shards.write_shard = half


POINTS = {
    "before anything": before_call(pipeline, "_calibration_rows"),
    "directory made, not yet claimed": before_call(output_module.os, "open"),
    "claimed, no journal": before_call(pipeline, "begin_run"),
    "journal written, not yet in place": before_call(journal_module.Path, "replace"),
    "first journal in place": before_call(shards, "write_shard"),
    "half of a shard": half_shard,
    "between shard and journal": before_call(Journal, "append", lambda _, entry: entry.shard == 2),
    "torn line of the journal": torn_line,
    "between two layers": after_call(Journal, "append", lambda _, entry: entry.shard == 2),
    "last layer": after_call(Journal, "append", lambda _, entry: entry.shard == NUM_LAYERS),
    "all shards, no index": before_call(finish, "write_index"),
    "before the manifest": before_call(finish, "write_manifest"),
    "before the rename": before_call(output_module, "_put_in_place"),
    "after the rename": before_call(output_module, "remove_leftovers"),
}


BOTH = ("half of a shard", "torn line of the journal", "last layer", "before the rename")


@pytest.mark.parametrize(
    ("method", "point"),
    [*(("gptq", point) for point in POINTS), *(("rtn", point) for point in BOTH)],
)
def test_resume_after_a_kill_gives_the_bytes_of_a_whole_run(
    place, output, gptq, expected, method, point
):
    options = gptq if method == "gptq" else RTN
    arguments = {"options": options, "output": output}
    killed(POINTS[point], place / "model", **arguments)
    result = quantize(place / "model", **arguments, resume=True)
    assert contents(output) == expected[method]
    assert result.already_finished is (point == "after the rename")
    assert len(result.linears) == 7 * NUM_LAYERS
    assert sorted(path.name for path in place.iterdir() if "out" in path.name) == ["out"]
    (output / "mine").touch()
    again = quantize(place / "model", **arguments, resume=True)
    assert (output / "mine").exists()
    assert again.already_finished and again.linears == result.linears
    assert again.to_text().startswith("Finished already, and every file has its hash.\n")


def after_the_renames():
    # It is called before the run too, when no older output has been renamed.
    before_call(
        output_module,
        "remove_leftovers",
        lambda target: any(target.parent.glob(f".{target.name}.replaced-*")),
    )()


def test_a_dry_run_of_a_finished_output_removes_nothing(place, output, gptq, expected):
    arguments = {"options": gptq, "output": output}
    quantize(place / "model", **arguments)
    killed(after_the_renames, place / "model", **arguments, overwrite=True)

    def around():
        return {path: contents(path) for path in place.iterdir() if "out" in path.name}

    before = around()
    assert len(before) == 2 and (output / JOURNAL_NAME).exists()
    result = quantize(place / "model", **arguments, resume=True, dry_run=True)
    assert result.already_finished and around() == before
    quantize(place / "model", **arguments, resume=True)
    assert around() == {output: expected["gptq"]}


def between_the_renames():
    plain = Path.rename

    def rename(self, target):
        if self.name == "out.partial":
            kill()
        return plain(self, target)

    Path.rename = rename


def while_the_older_one_is_removed():
    plain = output_module.remove_path

    def remove(path):
        if ".replaced-" in str(path):
            plain(path)
            kill()
        plain(path)

    output_module.remove_path = remove


REPLACING = {
    "before the renames": before_call(output_module, "_put_in_place"),
    "between the renames": between_the_renames,
    "after the renames": after_the_renames,
    "the older one half removed": while_the_older_one_is_removed,
}


@pytest.mark.parametrize("point", REPLACING)
def test_resume_after_a_kill_while_replacing_an_older_output(place, output, gptq, expected, point):
    quantize(place / "model", options=RTN, output=output)
    arguments = {"options": gptq, "output": output, "overwrite": True}
    killed(REPLACING[point], place / "model", **arguments)
    quantize(place / "model", **arguments, resume=True)
    assert contents(output) == expected["gptq"]
    assert sorted(path.name for path in place.iterdir() if "out" in path.name) == ["out"]


def test_an_older_output_gets_its_name_back_when_the_new_one_is_given_up(place, output, expected):
    quantize(place / "model", options=RTN, output=output)
    killed(between_the_renames, place / "model", options=RTN, output=output, overwrite=True)
    assert not output.exists()
    with pytest.raises(OutputError, match="exists and is not empty"):
        quantize(place / "model", options=RTN, output=output, resume=True)
    assert contents(output) == expected["rtn"]


def test_resume_again_and_again(place, output, gptq, expected):
    arguments = {"options": gptq, "output": output}
    for shard in range(1, NUM_LAYERS + 1):
        arm = after_call(Journal, "append", lambda _, entry, shard=shard: entry.shard == shard)
        killed(arm, place / "model", **arguments, resume=True)
    quantize(place / "model", **arguments, resume=True)
    assert contents(output) == expected["gptq"]
    timing = json.loads((output / TIMING_NAME).read_text("utf-8"))
    assert timing["resumes"] == 3
    assert len(timing["layer_seconds"]) == NUM_LAYERS


def test_resume_quantizes_no_finished_layer_again(place, output, gptq, monkeypatch):
    interrupt(place, output, gptq, layers=2)
    plain, names = shards.linear_tensors, []
    monkeypatch.setattr(
        shards,
        "linear_tensors",
        lambda layout, name, *rest: names.append(name) or plain(layout, name, *rest),
    )
    quantize(place / "model", options=gptq, output=output, resume=True)
    assert len(names) == 7 and all(name.startswith("model.layers.2.") for name in names)


# ---- stopping and failing ---------------------------------------------------------------------


def interrupt(place, output, options, layers=1, **arguments):
    """Stop a run after ``layers`` layers; return the error's text."""
    control = StopAfter(layers)
    with pytest.raises(StoppedError) as caught:
        quantize(place / "model", options=options, output=output, control=control, **arguments)
    assert control.told == (layers, NUM_LAYERS)
    assert caught.value.exit_code == 130
    return str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_stop_finishes_the_layer_and_keeps_it(place, output, gptq, expected, method):
    options = gptq if method == "gptq" else RTN
    assert interrupt(place, output, options) == "Stopped after 1 of 3 layers, which are kept."
    assert not output.exists()
    partial = place / "out.partial"
    assert read_journal(partial).finished == 1
    assert (partial / "model-00002-of-00005.safetensors").is_file()
    quantize(place / "model", options=options, output=output, resume=True)
    assert contents(output) == expected[method]


def test_stop_while_finished_layers_are_carried_keeps_them_all(place, output, gptq, expected):
    interrupt(place, output, gptq, layers=2)
    before = contents(place / "out.partial")
    control, listener = StopAfter(1, signal.SIGTERM), Listener()
    with pytest.raises(StoppedError) as caught:
        quantize(
            place / "model",
            options=gptq,
            output=output,
            resume=True,
            control=control,
            progress=listener,
        )
    assert str(caught.value) == "Stopped after 2 of 3 layers, which are kept."
    assert caught.value.exit_code == 143 and control.told == (2, NUM_LAYERS)
    assert listener.skipped == ["layer 0: finished before, the rows were carried through it"]
    after = contents(place / "out.partial")
    for files in (before, after):
        del files[JOURNAL_NAME]
    assert after == before
    quantize(place / "model", options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]


def test_without_resume_finished_layers_are_not_destroyed(place, output, gptq, expected):
    interrupt(place, output, gptq, layers=2)
    before = contents(place / "out.partial")
    for dry_run in (False, True):
        with pytest.raises(OutputError) as caught:
            quantize(place / "model", options=gptq, output=output, dry_run=dry_run)
        assert str(caught.value) == (
            f"{place / 'out.partial'} holds 2 of 3 finished layers of an interrupted run. Give "
            "--resume to go on from there, or --overwrite to begin again."
        )
    assert contents(place / "out.partial") == before
    result = quantize(place / "model", options=gptq, output=output, overwrite=True)
    assert contents(output) == expected["gptq"]
    assert json.loads((output / TIMING_NAME).read_text("utf-8"))["resumes"] == 0
    assert not result.already_finished


@pytest.mark.parametrize("layer", [0, 2])
def test_a_failure_keeps_what_is_finished(tmp_path, layer):
    bad = torch.full((160, 64), float("nan"), dtype=torch.bfloat16)
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    source = write_checkpoint(tmp_path / "model", num_layers=3, extra_tensors={name: bad})
    control = StopAfter(99)
    with pytest.raises(QuantizationError):
        quantize(source, options=RTN, control=control)
    assert control.told == ((layer, 3) if layer else None)
    assert (tmp_path / "model-int8.partial").exists() is bool(layer)


def test_a_full_disk_keeps_what_is_finished_and_says_so(place, output, gptq, expected, monkeypatch):
    plain = shards.write_shard

    def full(path, tensors):
        if is_shard(3)(path):
            raise OSError(28, "No space left on device")
        return plain(path, tensors)

    monkeypatch.setattr(shards, "write_shard", full)
    control = StopAfter(99)
    with pytest.raises(OutputError, match="What is finished was kept. Free space"):
        quantize(place / "model", options=gptq, output=output, control=control)
    assert control.told == (2, 3)
    monkeypatch.undo()
    quantize(place / "model", options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]


def test_rows_that_do_not_fit_the_disk_are_told_of(place, output, gptq, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hidden_rows_module, "available_memory_bytes", lambda: 0)
    monkeypatch.setattr(hidden_rows_module.os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="The disk is full: .* Nothing was kept. Free space"):
        quantize(place / "model", options=gptq, output=output)
    assert [path.name for path in place.iterdir() if "out" in path.name] == []


def test_rows_on_the_disk_count_for_the_space_that_is_needed(place, output, gptq, monkeypatch):
    needed = []
    monkeypatch.setattr(pipeline, "check_space", lambda path, count: needed.append(count))
    quantize(place / "model", options=gptq, output=output, dry_run=True)
    monkeypatch.setattr(estimate_module, "available_memory_bytes", lambda: 0)
    quantize(place / "model", options=gptq, output=output, dry_run=True)
    # Two buffers of all 24 x 32 tokens, and the rows of the float stream, 64 wide.
    least = 2 * 24 * 32 * 64 * CPU.dtype.itemsize
    assert least < needed[1] - needed[0] <= 3 * least // 2


def test_a_journal_line_that_did_not_fit_leaves_no_torn_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path, journal_module.Recorded({}, 3))
    plain = Journal._write

    def full(self, line):
        self._file.write(line[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "_write", full)
    with pytest.raises(OSError, match="No space"):
        journal.append(journal_module.Entry(1))
    monkeypatch.setattr(Journal, "_write", plain)
    journal.append(journal_module.Entry(2, records=(LinearRecord("a", "rtn", 0.1, float("inf")),)))
    journal.close()
    assert read_journal(tmp_path).entries == journal.recorded.entries
    assert list(journal.recorded.entries) == [2]


# ---- another run ------------------------------------------------------------------------------


def change_option(context):
    context["options"] = replace(context["options"], seed=7, act_order=False)
    return ["option act_order: true then, false now", "option seed: 0 then, 7 now"]


def change_weights(context):
    source = context["source"]
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return ["weights model.safetensors: "]


def change_side_file(context):
    path = context["source"] / "generation_config.json"
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")
    return ["file generation_config.json: "]


def change_text(context):
    path = context["text"]
    path.write_text(f"other {path.read_text('utf-8')}", "utf-8")
    return [
        *("calibration sources 0 documents_read: ", "calibration sources 0 sha256: "),
        "calibration tokens_sha256: ",
    ]


def change_threads(context):
    context["monkeypatch"].setattr(identity_module.torch, "get_num_threads", lambda: 77)
    return ["torch threads: 1 then, 77 now"]


def change_processor(context):
    context["monkeypatch"].setattr(identity_module, "processor_name", lambda: "abacus")
    return ["processor: "]


def change_versions(context):
    plain = identity_module.library_versions()
    changed = {**plain, "torch": "9.9"}
    context["monkeypatch"].setattr(identity_module, "library_versions", lambda: changed)
    context["monkeypatch"].setattr(identity_module, "__version__", "9.0")
    return [f"library torch: {plain['torch']} then, 9.9 now", "vacc-deploy: "]


CHANGES = (
    *(change_option, change_weights, change_side_file, change_text, change_threads),
    *(change_processor, change_versions),
)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_resume_of_another_run_is_refused_by_name(tmp_path, words, monkeypatch, change, finished):
    text = tmp_path / "words.txt"
    shutil.copy(words, text)
    source = write_checkpoint(tmp_path / "model", num_layers=2)
    options = QuantizeOptions("gptq", (CalibrationSource("text", text),), 8, 32)
    if finished:
        quantize(source, options=options)
    else:
        with pytest.raises(StoppedError):
            quantize(source, options=options, control=StopAfter(1))
    context = {"options": options, "source": source, "text": text, "monkeypatch": monkeypatch}
    lines = change(context)
    kept = tmp_path / ("model-int8" if finished else "model-int8.partial")
    before = contents(kept)
    control = StopAfter(99)
    with pytest.raises(OutputError) as caught:
        quantize(source, options=context["options"], resume=True, control=control)
    first, *found, last = str(caught.value).splitlines()
    assert first == (
        f"{kept} exists and was made with other inputs, options or versions:"
        if finished
        else f"{kept} was begun with other inputs, options or versions:"
    )
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(f"  - {start}") and " then, " in line and line.endswith(" now")
    assert "--overwrite" in last
    assert contents(kept) == before and control.told is None


def test_resume_of_another_finished_output_replaces_it_on_request(place, output, gptq, expected):
    quantize(place / "model", options=RTN, output=output)
    quantize(place / "model", options=gptq, output=output, resume=True, overwrite=True)
    assert contents(output) == expected["gptq"]


def test_identity_of_large_weights_looks_into_every_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(identity_module, "WHOLE_BYTES", 0)
    source = write_checkpoint(tmp_path / "model")
    checkpoint = pipeline.Checkpoint.open(source)
    path = source / "model.safetensors"
    plain = path.read_bytes()

    def identity():
        return identity_module.identify(checkpoint, RTN, "m", None, CPU)[
            "weights model.safetensors"
        ]

    first = identity()
    for info in checkpoint.tensors.values():
        for position in (info.offset, info.offset + info.num_bytes - 1):
            data = bytearray(plain)
            data[position] ^= 1
            path.write_bytes(data)
            assert identity() != first
    path.write_bytes(plain)
    assert identity() == first


def test_identity_holds_the_answers_but_not_where_they_are_kept(tmp_path, gptq):
    checkpoint = pipeline.Checkpoint.open(write_checkpoint(tmp_path / "model"))
    own = replace(gptq, answers="own")

    def identity(answers_sha256, options=own):
        calibration = {"answers": {"answers_sha256": answers_sha256}, "seed": options.seed}
        return identity_module.identify(checkpoint, options, "m", calibration, CPU)

    (line,) = identity_module.differences(identity("aa"), identity("bb"))
    assert line == "calibration answers answers_sha256: aa then, bb now"
    assert identity("aa", replace(own, answers_cache=tmp_path / "cache")) == identity("aa")
    (line,) = identity_module.differences(
        identity("aa"), identity("aa", replace(own, max_answer_tokens=7))
    )
    assert line == "option max_answer_tokens: 512 then, 7 now"


# ---- damage -----------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "another byte": (flip, "has another hash than when it was written"),
    "shorter": (lambda path: os.truncate(path, 100), "has 100 bytes, expected "),
    "missing": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("shard", [0, 1, 2])
def test_resume_makes_a_damaged_shard_again(place, output, gptq, expected, damage, shard):
    interrupt(place, output, gptq, layers=2)
    act, reason = DAMAGES[damage]
    act(place / "out.partial" / f"model-{shard + 1:05d}-of-00005.safetensors")
    listener = Listener()
    quantize(place / "model", options=gptq, output=output, resume=True, progress=listener)
    assert contents(output) == expected["gptq"]
    assert listener.warnings[0].startswith(f"shard {shard + 1} of 5 is made again: ")
    assert reason in listener.warnings[0]
    later = [f"going on after layer {shard - 1} instead of 2"] if shard else []
    assert listener.warnings[1:] == later


def test_resume_removes_what_the_journal_does_not_list(place, output, gptq, expected, tmp_path):
    interrupt(place, output, gptq)
    partial = place / "out.partial"
    (partial / "model-00004-of-00005.safetensors").write_bytes(b"half")
    (partial / "config.json").write_text("{}")
    (partial / "sub").mkdir()
    (partial / "sub" / "x").touch()
    (tmp_path / "keep").touch()
    (partial / "link").symlink_to(tmp_path)
    quantize(place / "model", options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]
    assert (tmp_path / "keep").exists()


@pytest.mark.parametrize("line", [0, 1])
def test_a_damaged_journal_counts_up_to_the_damage(place, output, gptq, expected, line):
    interrupt(place, output, gptq, layers=2)
    path = place / "out.partial" / JOURNAL_NAME
    lines = path.read_bytes().split(b"\n")
    lines[line] = lines[line].replace(b"a", b"b", 1)
    path.write_bytes(b"\n".join(lines))
    listener = Listener()
    quantize(place / "model", options=gptq, output=output, resume=True, progress=listener)
    assert contents(output) == expected["gptq"]
    damaged = f"the journal in {place / 'out.partial'} is damaged: beginning again"
    assert listener.warnings == ([damaged] if line == 0 else [])


def rewrite_line(path, number, change):
    """Change the values of one line of a journal, and give it its hash again."""
    lines = path.read_bytes().split(b"\n")
    values = json.loads(lines[number].partition(b" ")[2])
    change(values)
    lines[number] = journal_module._line(values).rstrip(b"\n")
    path.write_bytes(b"\n".join(lines))


FOREIGN = {
    "another version": (0, lambda head: head.update(version=99), "journal version 99, expected "),
    "no identity": (0, lambda head: head.pop("identity"), "its first line lacks the run's"),
    "another field": (1, lambda entry: entry.update(colour=1), "a line has the fields ['colour'"),
    "a field less": (2, lambda entry: entry.pop("scales"), "a line has the fields ['files'"),
    "another record": (-2, lambda entry: entry["records"][0].update(colour=1), "colour"),
    "no number": (1, lambda entry: entry.update(shard=float("inf")), "cannot convert float"),
    "another kind": (1, lambda entry: entry.update(files=[1]), "'list' object"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_finished_layers_of_another_version_are_not_destroyed(place, output, gptq, expected, kind):
    interrupt(place, output, gptq, layers=2)
    partial = place / "out.partial"
    number, change, reason = FOREIGN[kind]
    rewrite_line(partial / JOURNAL_NAME, number, change)
    before, arguments = contents(partial), {"options": gptq, "output": output}
    for more in ({}, {"resume": True}, {"resume": True, "overwrite": True}, {"dry_run": True}):
        with pytest.raises(OutputError) as caught:
            quantize(place / "model", **arguments, **more)
        first, _, rest = str(caught.value).partition(" (")
        assert first == (
            f"{partial / JOURNAL_NAME} was written by another version of vacc-deploy, and this one "
            "cannot read it, nor the layers that are finished there"
        )
        assert reason in rest and rest.endswith(
            "). Resume with the version that began, or give --overwrite, without --resume, to "
            "begin again."
        )
        assert contents(partial) == before
    quantize(place / "model", **arguments, overwrite=True)
    assert contents(output) == expected["gptq"]


def test_a_run_that_fails_keeps_the_journal_of_another_version(place, output, gptq, monkeypatch):
    interrupt(place, output, gptq)
    partial = place / "out.partial"
    rewrite_line(partial / JOURNAL_NAME, 0, lambda head: head.update(version=99))
    before = contents(partial)

    def fail(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "begin_run", fail)
    control = StopAfter(99)
    with pytest.raises(KeyboardInterrupt):
        quantize(place / "model", options=gptq, output=output, overwrite=True, control=control)
    assert contents(partial) == before and control.told is None


@pytest.mark.parametrize("formats", [("int8",), ("int8", FP16)])
def test_shards_with_a_damaged_journal_are_not_destroyed(place, output, formats):
    options = replace(RTN, formats=formats)
    interrupt(place, output, options)
    partial = place / "out.partial"
    os.truncate(partial / JOURNAL_NAME, 40)
    before = contents(partial)
    with pytest.raises(OutputError) as caught:
        quantize(place / "model", options=options, output=output)
    assert str(caught.value) == (
        f"{partial} holds shards of an interrupted run, but {JOURNAL_NAME} there is damaged, so "
        "that none can be used again. Give --overwrite to begin again."
    )
    assert contents(partial) == before
    quantize(place / "model", options=options, output=output, overwrite=True)


def test_a_damaged_journal_without_a_shard_is_in_nobodys_way(place, output, expected):
    killed(POINTS["first journal in place"], place / "model", options=RTN, output=output)
    os.truncate(place / "out.partial" / JOURNAL_NAME, 40)
    quantize(place / "model", options=RTN, output=output)
    assert contents(output) == expected["rtn"]


def test_resume_of_a_finished_but_damaged_output(place, output, gptq, expected):
    quantize(place / "model", options=gptq, output=output)
    flip(output / "model-00003-of-00005.safetensors")
    (output / "tokenizer.json").unlink()
    with pytest.raises(OutputError) as caught:
        quantize(place / "model", options=gptq, output=output, resume=True)
    assert str(caught.value) == (
        f"{output} exists and is damaged:\n"
        f"  - {output / 'model-00003-of-00005.safetensors'} has another hash than "
        f"{MANIFEST_NAME} gives\n"
        f"  - {output / 'tokenizer.json'} is missing\n"
        "Give --overwrite to replace it, or choose another --output."
    )
    quantize(place / "model", options=gptq, output=output, resume=True, overwrite=True)
    assert contents(output) == expected["gptq"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "out/vacc_deploy.json lists no files"),
        ({"../whole-rtn/config.json": {}}, "lists '../whole-rtn/config.json', which lies outside"),
        ({"/etc/hostname": {}}, "vacc_deploy.json lists '/etc/hostname', which lies outside"),
        ({"config.json": 5}, "config.json has another hash than vacc_deploy.json gives"),
    ],
)
def test_resume_of_a_finished_output_with_a_strange_manifest(place, output, files, problem):
    quantize(place / "model", options=RTN, output=output)
    path = output / MANIFEST_NAME
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**manifest, "files": files}), "utf-8")
    with pytest.raises(OutputError) as caught:
        quantize(place / "model", options=RTN, output=output, resume=True)
    assert problem in str(caught.value)


# ---- several formats --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "formats"),
    [
        ("gptq", FORMATS),
        ("rtn", FORMATS),
        ("gptq", (FP16,)),  # stores no scales: they come from the journal
        ("gptq", (GPTQ, COMPRESSED_TENSORS)),
    ],
)
def test_resume_of_other_formats(place, output, gptq, method, formats):
    options = replace(gptq if method == "gptq" else RTN, formats=formats)
    whole = quantize(place / "model", options=options, output=place / "whole-out").output_dir
    arguments = {"options": options, "output": output}
    killed(POINTS["between two layers"], place / "model", **arguments)
    killed(POINTS["before the manifest"], place / "model", **arguments, resume=True)
    quantize(place / "model", **arguments, resume=True)
    assert contents(output) == contents(whole)
    assert quantize(place / "model", **arguments, resume=True).already_finished


def test_several_formats_are_directories_of_their_own(place, output, gptq, expected):
    options = replace(gptq, formats=("int8", FP16))
    result = quantize(place / "model", options=options, output=output)
    names = {path.name for path in output.iterdir()}
    assert names == {"int8", FP16, MANIFEST_NAME, TIMING_NAME}
    manifest = json.loads((output / MANIFEST_NAME).read_text("utf-8"))
    assert manifest["files"].keys() == {f"int8/{MANIFEST_NAME}", f"{FP16}/{MANIFEST_NAME}"}
    assert manifest["options"]["formats"] == ["int8", FP16]
    # But for the way to the source, the directory is that of a run with one format.
    alone, inner = dict(expected["gptq"]), contents(output / "int8")
    own, other = (json.loads(files.pop(MANIFEST_NAME)) for files in (alone, inner))
    assert inner == alone
    assert other["source"] == {"path": "../../model"} and own["source"] == {"path": "../model"}
    assert other["files"] == own["files"] and other["options"] == own["options"]
    assert f"Next: vacc-deploy verify {output / 'int8'}" in result.to_text()
    quantize(place / "model", options=options, output=output, overwrite=True)
    (output / FP16 / "mine").touch()
    with pytest.raises(OutputError, match=f"  - {FP16}/mine\n"):
        quantize(place / "model", options=options, output=output, overwrite=True)


def test_all_formats_of_a_run_hold_the_same_integers_and_scales(place, output, gptq):
    options = replace(gptq, formats=FORMATS)
    quantize(place / "model", options=options, output=output)
    opened = {layout: pipeline.Checkpoint.open(output / layout) for layout in FORMATS}
    for name in opened["int8"].config.linear_names():
        codes, scale = codes_from("int8", opened["int8"].read, name)
        assert codes.dtype == torch.int8 and scale.dtype == torch.float16
        for layout, checkpoint in opened.items():
            got, got_scale = codes_from(layout, checkpoint.read, name, scale)
            assert torch.equal(got, codes) and torch.equal(got_scale, scale)


def test_default_outputs_of_formats(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    for formats, name in ((("int8",), "int8"), ((FP16,), FP16), (("int8", FP16), "quantized")):
        options = replace(RTN, formats=formats)
        result = quantize(source, options=options, dry_run=True)
        assert result.output_dir == tmp_path / f"model-{name}"


# ---- the command line -------------------------------------------------------------------------

# Says when the first layer is finished, and takes its time then.
SLOW = """
import sys, time
from vacc_deploy.quantize import shards as layers
plain = layers.summarize_layer
def summarize(index, records):
    print("layer", index, flush=True)
    time.sleep(SECONDS)
    return plain(index, records)
layers.summarize_layer = summarize
from vacc_deploy.cli import main
sys.argv[0] = "vacc-deploy"
main()
"""


def start_command(source, words, seconds):
    arguments = ["quantize", str(source), "--calibration", f"text={words}"]
    arguments += ["--num-samples", "24", "--seq-len", "32"]
    code = SLOW.replace("SECONDS", str(seconds))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "layer 0\n"
    return process, arguments


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_after_the_layer_and_names_the_command(
    tmp_path, words, gptq, expected, place, number, code
):
    shutil.copytree(place / "model", tmp_path / "model")
    process, arguments = start_command(tmp_path / "model", words, 0.7)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    command = resume_command(["vacc-deploy", *arguments])
    lines = [line for line in stderr.splitlines() if line and not line.startswith("Quantizing")]
    assert lines[-2:] == [
        "Finishing the current layer; once more stops at once.",
        f"Error: Stopped after 1 of 3 layers, which are kept. Resume with: {command}",
    ]
    result = quantize(tmp_path / "model", options=gptq, resume=True)
    assert contents(result.output_dir) == expected["gptq"]


def test_a_second_signal_ends_at_once(tmp_path, words, gptq, expected, place):
    shutil.copytree(place / "model", tmp_path / "model")
    process, _ = start_command(tmp_path / "model", words, 30)
    journal = tmp_path / "model-int8.partial" / JOURNAL_NAME
    deadline = time.monotonic() + 20
    while b'"shard":1,' not in journal.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert time.monotonic() - started < 15
    assert "Error: Interrupted. 1 of 3 layers are finished and kept. Resume with: " in stderr
    result = quantize(tmp_path / "model", options=gptq, resume=True)
    assert contents(result.output_dir) == expected["gptq"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/x/vacc-deploy", "quantize", "a b"], "/usr/x/vacc-deploy quantize 'a b' --resume"),
        (["/x/vacc_deploy/__main__.py", "quantize", "m"], f"{sys.executable} -m vacc_deploy "),
        (["x", "quantize", "m", "--resume"], "x quantize m --resume"),
        (["x", "quantize", "--", "-m"], "x quantize --resume -- -m"),
    ],
)
def test_resume_command_is_what_was_typed_and_resume(argv, command):
    got = resume_command(argv)
    assert got.startswith(command)
    assert got.count("--resume") == 1

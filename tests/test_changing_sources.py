"""A source that changes under a command ends it with the file's name, and nothing stays."""

import os
import resource
import shutil
import time
from functools import partial

import pytest
from ceval_archives import write_archive
from changing_sources import CHANGES, ChangeAt
from checkpoint_builders import write_checkpoint

from vacc_deploy.assets import default_text_file
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CalibrationError, CheckpointError, OutputError
from vacc_deploy.evaluation.ceval import evaluate_ceval
from vacc_deploy.evaluation.text import evaluate_text
from vacc_deploy.outputs.files import LINK_MODES, place_shard
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.loader import load_model
from vacc_deploy.reference.verify import verify
from vacc_deploy.vamc.target import find_target

NUM_LAYERS = 4
SHARD, LAST_SHARD = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
INDEX = "model.safetensors.index.json"
RTN = QuantizeOptions("rtn", formats=("vamc", "int8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = write_checkpoint(
        tmp_path_factory.mktemp("model") / "m", shards=2, num_layers=NUM_LAYERS
    )
    (directory / "README.md").write_text("A model.\n")
    return directory


@pytest.fixture
def source(model, tmp_path):
    return shutil.copytree(model, tmp_path / "src")


def check_refused(path, call):
    """Expect the error that names the changed file and what to do."""
    with pytest.raises(CheckpointError) as caught:
        call()
    text = str(caught.value)
    assert "was changed while it was read" in text and path.name in text
    assert "has ended, then rerun." in text


# ---- prepare -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LINK_MODES)
@pytest.mark.parametrize("change", CHANGES)
def test_prepare_of_weights_that_change_before_they_are_placed(source, tmp_path, change, mode):
    path = source / LAST_SHARD
    moment = ChangeAt(partial(CHANGES[change], path), "Placing weights")
    options = {"link_mode": mode, "progress": moment}
    check_refused(path, lambda: prepare(source, output=tmp_path / "out", **options))
    assert moment.is_done and os.listdir(tmp_path) == ["src"]


@pytest.mark.parametrize("name", [SHARD, INDEX, "tokenizer.json", "config.json", "README.md"])
@pytest.mark.parametrize(
    "moment", [("Checking weights", 0), ("Checking weights", 1), ("Placing weights", 2)]
)
def test_prepare_of_any_file_that_changes_at_any_moment(source, tmp_path, name, moment):
    for number, change in enumerate(CHANGES.values()):
        path = shutil.copytree(source, tmp_path / str(number)) / name
        at = ChangeAt(partial(change, path), *moment)
        check_refused(
            path, lambda p=path, a=at: prepare(p.parent, output=tmp_path / "o", progress=a)
        )
        assert at.is_done and not [each for each in os.listdir(tmp_path) if each[0] == "o"]


def test_a_file_that_comes_while_weights_are_read(source, tmp_path):
    name = "special_tokens_map.json"
    (source / name).unlink(missing_ok=True)
    at = ChangeAt(lambda: (source / name).write_text("{}"), "Checking weights")
    check_refused(source / name, lambda: prepare(source, output=tmp_path / "o", progress=at))
    (source / name).unlink()
    # A document is read by no program.
    at = ChangeAt(lambda: (source / "NOTICE").write_text("new"), "Checking weights")
    prepare(source, output=tmp_path / "n", progress=at)
    # Without an index every weight file counts; with one a new file is none of the model's.
    new = source / "extra.safetensors"
    at = ChangeAt(partial(shutil.copy, source / SHARD, new), "Checking weights")
    prepare(source, output=tmp_path / "o", progress=at)
    new.unlink()
    (source / INDEX).unlink()
    at = ChangeAt(partial(shutil.copy, source / SHARD, new), "Checking weights")
    check_refused(new, lambda: prepare(source, output=tmp_path / "p", progress=at))


def test_a_single_file_that_comes_beside_an_index_wins_over_it(source, tmp_path):
    new = source / "model.safetensors"
    at = ChangeAt(partial(shutil.copy, source / SHARD, new), "Checking weights")
    check_refused(new, lambda: prepare(source, output=tmp_path / "o", progress=at))
    assert at.is_done and os.listdir(tmp_path) == ["src"]


@pytest.mark.parametrize("mode", ["hardlink", "symlink", "copy"])
def test_what_is_placed_is_compared_with_what_was_checked(source, tmp_path, mode):
    """Also by whoever places one file alone."""
    for number, change in enumerate(CHANGES):
        if change == "remove" and mode != "symlink":
            continue  # the system says so
        directory, folder = tmp_path / f"a{number}", tmp_path / f"b{number}"
        shard = Checkpoint.open(shutil.copytree(source, directory)).shards[SHARD]
        CHANGES[change](directory / SHARD)
        folder.mkdir()
        check_refused(directory / SHARD, lambda s=shard, f=folder: place_shard(s, f, mode))


def test_links_of_our_own_to_the_source_change_nothing(source, tmp_path):
    """A hard link changes the time of the inode's own change, and another user's rights too."""

    def act():
        os.link(source / SHARD, tmp_path / "link")
        os.chmod(source / SHARD, 0o600)
        (source / SHARD).read_bytes()

    prepare(source, output=tmp_path / "o", progress=ChangeAt(act, "Checking weights"))


def test_no_descriptor_is_kept_for_a_shard(tmp_path):
    names = [f"part-{number:03d}.safetensors" for number in range(40)]
    source = write_checkpoint(tmp_path / "m", shard_names=names, num_layers=NUM_LAYERS)
    used, (_, hard) = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, hard))
    try:
        prepare(source, output=tmp_path / "out", link_mode="copy")
        quantize(source, options=QuantizeOptions("rtn"), output=tmp_path / "int8")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- quantize ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [SHARD, LAST_SHARD, "tokenizer.json"])
def test_quantize_of_a_source_that_changes_at_its_second_layer(source, tmp_path, change, name):
    at = ChangeAt(partial(CHANGES[change], source / name), "Quantizing", 2)
    run = partial(quantize, source, options=RTN, output=tmp_path / "out")
    check_refused(source / name, lambda: run(progress=at, kept=at.kept))
    assert at.is_done and not (tmp_path / "out").exists()


def test_quantize_of_a_source_that_changes_before_the_run_begins(source, tmp_path):
    at = ChangeAt(partial(CHANGES["flip"], source / SHARD), "Checking weights", 1)
    run = partial(quantize, source, options=RTN, output=tmp_path / "out")
    check_refused(source / SHARD, lambda: run(progress=at))
    assert os.listdir(tmp_path) == ["src"]


def test_quantize_of_a_source_that_changes_behind_the_last_layer(source, tmp_path):
    for name in (SHARD, "tokenizer.json", "config.json", "generation_config.json"):
        at = ChangeAt(partial(CHANGES["append"], source / name), "Quantizing", NUM_LAYERS)
        output = tmp_path / f"out-{name}"
        run = partial(quantize, source, options=RTN, output=output)
        check_refused(source / name, lambda run=run, at=at: run(progress=at))
        assert not output.exists()
        size = (source / name).stat().st_size
        os.truncate(source / name, size - 4)


def test_resume_goes_on_with_the_same_content_and_with_no_other(source, model, tmp_path):
    def act():
        while not at.kept.finished:  # a shard is recorded by the thread that writes it
            time.sleep(0.001)
        CHANGES["flip"](source / LAST_SHARD)

    at = ChangeAt(act, "Quantizing", 2)
    run = partial(quantize, source, options=RTN, output=tmp_path / "out")
    check_refused(source / LAST_SHARD, lambda: run(progress=at, kept=at.kept))
    with pytest.raises(OutputError, match="was begun with other inputs, options or versions"):
        run(resume=True)
    shutil.copyfile(model / LAST_SHARD, source / LAST_SHARD)
    resumed = run(resume=True).output_dir
    whole = quantize(source, options=RTN, output=tmp_path / "whole").output_dir
    names = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert names and all((resumed / n).read_bytes() == (whole / n).read_bytes() for n in names)


@pytest.mark.parametrize("change", ["truncate", "append", "flip", "replace", "remove"])
def test_a_calibration_file_that_changes_while_it_is_read(source, tmp_path, change):
    from quantize_runs import gptq_options, write_words

    text = write_words(tmp_path / "words.txt")
    at = ChangeAt(partial(CHANGES[change], text), "Reading calibration text")
    with pytest.raises(CalibrationError, match="words.txt was changed while it was read"):
        quantize(source, options=gptq_options(text), output=tmp_path / "out", progress=at)
    assert at.is_done and not (tmp_path / "out").exists()


# ---- the commands that only read ---------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_verify_gives_no_verdict_on_models_that_change(source, tmp_path, change):
    prepare(source, output=tmp_path / "out", link_mode="copy")
    for directory in (source, tmp_path / "out"):
        path = directory / LAST_SHARD
        state, data = path.stat(), path.read_bytes()
        at = ChangeAt(partial(CHANGES[change], path), "Verifying", 1)
        check_refused(path, lambda at=at: verify(tmp_path / "out", max_tokens=64, progress=at))
        path.write_bytes(data)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("task", ["ceval", "text"])
def test_evaluate_gives_no_figures_of_models_that_change(source, tmp_path, task):
    prepare(source, output=tmp_path / "out", link_mode="copy")
    for directory in (source, tmp_path / "out"):
        path = directory / LAST_SHARD
        state, data = path.stat(), path.read_bytes()
        title = {"ceval": "Evaluating", "text": "Verifying"}[task]
        at = ChangeAt(partial(CHANGES["flip"], path), title, 1)
        check_refused(path, lambda at=at: evaluate(task, tmp_path, at))
        path.write_bytes(data)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def evaluate(task, tmp_path, progress):
    deployed = tmp_path / "out"
    if task == "ceval":
        archive = write_archive(tmp_path / "ceval-exam.zip", subjects=("law",))
        return evaluate_ceval(deployed, archive, shots=0, progress=progress)
    return evaluate_text(deployed, {"own": default_text_file()}, max_tokens=64, progress=progress)


def test_a_model_that_changes_while_it_is_loaded(source, tmp_path, monkeypatch):
    prepare(source, output=tmp_path / "out", link_mode="copy")
    for directory in (source, tmp_path / "out"):
        checkpoint = Checkpoint.open(directory)
        CHANGES["flip"](directory / SHARD)
        check_refused(directory / SHARD, lambda c=checkpoint: load_model(c))


def test_a_directory_that_changes_while_its_compile_file_is_made(source, tmp_path, monkeypatch):
    from vacc_deploy.vamc import target

    prepare(source, output=tmp_path / "out")

    def find_layout(directory, config):
        CHANGES["append"](directory / "config_vacc.json")
        return ""

    monkeypatch.setattr(target, "stored_layout", find_layout)
    check_refused(tmp_path / "out/config_vacc.json", lambda: find_target(str(tmp_path / "out")))


@pytest.mark.parametrize("name", [SHARD, "tokenizer.json"])
def test_export_of_a_directory_that_changes(source, tmp_path, monkeypatch, name):
    from vacc_deploy.graphs import export

    prepare(source, output=tmp_path / "out", link_mode="copy")
    at = ChangeAt(partial(CHANGES["flip"], tmp_path / "out" / name), "Exporting", 1)
    # The graphs themselves do not matter here.
    monkeypatch.setattr(export, "_export_stage", lambda *a: export.ExportedGraph("prefill", ()))
    monkeypatch.setattr(export, "run_reference", lambda *a: None)
    monkeypatch.setattr(export, "compare_graphs", lambda *a: None)
    options = export.ExportOptions(stage="prefill", sequence_length=32, with_functions=True)
    run = partial(export.export_onnx, tmp_path / "out", output=tmp_path / "onnx", options=options)
    check_refused(tmp_path / "out" / name, lambda: run(progress=at))
    assert at.is_done and sorted(os.listdir(tmp_path)) == ["out", "src"]


def test_every_rank_ends_where_the_source_of_one_changes(source, model, tmp_path):
    """Each rank may read a copy of its own; after the last layer too no output appears."""
    from quantize_runs import gptq_options, write_words
    from rank_processes import run_ranks

    options = gptq_options(write_words(tmp_path / "words.txt"))

    def work(ranks):
        mine = source if ranks.rank else model
        if ranks.rank:
            monkeypatch_last_layer(partial(CHANGES["append"], source / "tokenizer.json"))
        quantize(mine, options=options, output=tmp_path / "out", ranks=ranks)

    def monkeypatch_last_layer(change):
        from vacc_deploy.quantize import calibrated

        check = calibrated.check_same_source
        calls = []

        def late(checkpoint, ranks):
            calls.append(1)
            if len(calls) == NUM_LAYERS:
                change()
            check(checkpoint, ranks)

        calibrated.check_same_source = late  # this process is forked

    for outcome in run_ranks(2, work):
        assert outcome.kind is CheckpointError
        assert "src/tokenizer.json was changed while it was read" in outcome.text
    assert not (tmp_path / "out").exists()

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint, write_json
from doubles import Recorder
from texts import contents, read_json, sha256
from written_outputs import names

from vacc_deploy.assets import SOURCE_FILES, source_file
from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, OutputError, UnsupportedModelError, UsageError
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.catalog import MODELS, known_model
from vacc_deploy.models.parse import parse_config
from vacc_deploy.models.rope import IGNORE, MULTIPLY
from vacc_deploy.models.vacc_config import vacc_config
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

MANIFEST, INDEX, VACC = "vacc_deploy.json", "model.safetensors.index.json", "config_vacc.json"
SIDES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def snapshot(directory):
    """Return every path with its bytes, modification time and kind."""
    return {
        str(path.relative_to(directory)): (
            path.read_bytes() if path.is_file() else None,
            path.lstat().st_mtime_ns,
            path.is_symlink(),
        )
        for path in sorted([directory, *directory.rglob("*")])
    }


def refused(kind=CheckpointError, **options):
    with pytest.raises(kind) as caught:
        prepare(**options)
    return str(caught.value)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 2])
def test_prepare_writes_exactly_the_files_of_the_contract(tmp_path, model_type, tied, shards):
    options = {"model_type": model_type, "tied": tied, "shards": shards}
    source, out = write_checkpoint(tmp_path / "src", **options), tmp_path / "out"
    result = prepare(weights=source, output=out)
    weights = SHARDS if shards == 2 else ["model.safetensors"]
    index = [INDEX] if shards == 2 else []
    ours = [] if model_type == "llama" else [*SOURCE_FILES, VACC]
    assert names(out) == sorted([*SIDES, *weights, *index, *ours, MANIFEST])
    for name in (*SIDES, *weights, *index):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    for name in ours[: len(SOURCE_FILES)]:
        assert (out / name).read_bytes() == source_file(name).read_bytes()
    assert sorted(name for name, _, _ in result.files) == names(out)
    assert all(size == (out / name).stat().st_size for name, size, _ in result.files)
    got, expected = read_tensors(out), read_tensors(source)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    if model_type != "llama":
        text = dump_json(vacc_config(parse_config(read_json(source / "config.json"), where="x")))
        assert (out / VACC).read_text() == text
    Checkpoint.open(out)


def test_notes_on_windows_and_a_missing_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = {"use_sliding_window": True, "sliding_window": 128}
    options = {"config_overrides": overrides, "with_tokenizer": False}
    source = write_checkpoint(tmp_path / "src", **options)
    assert prepare(weights=write_checkpoint(tmp_path / "plain")).notes == (
        "sliding_window is null in config_vacc.json: the model does not use it "
        "(use_sliding_window is false), but the vendor's graph would apply it.",
    )
    result = prepare(weights=source, output=tmp_path / "out")
    assert result.notes == (
        "the source has no tokenizer.json; quantize and verify will need it.",
        "this model really uses a sliding window of 128 tokens.",
    )
    assert "Note: this model really uses" in result.to_text()


def test_the_manifest_describes_every_other_file(tmp_path):
    source, out = write_checkpoint(tmp_path / "src" / "Mine", shards=2), tmp_path / "out"
    prepare(weights=source, output=out)
    manifest = read_json(out / MANIFEST)
    assert list(manifest["files"]) == [name for name in names(out) if name != MANIFEST]
    for name, entry in manifest["files"].items():
        path = out / name
        assert entry.pop("bytes") == path.stat().st_size
        if name in SHARDS:
            assert entry == {"header_sha256": read_header(path).header_sha256}
        else:
            assert entry == {"sha256": sha256(path)}
    assert manifest["source"] == {"path": "../src/Mine", "repository": None, "revision": None}
    assert (manifest["command"], manifest["model"]) == ("prepare", "Mine")
    assert manifest["options"] == {"link_mode": "auto"}
    assert manifest["tool"]["name"] == "vacc-deploy"
    assert str(tmp_path) not in (out / MANIFEST).read_text()


def test_a_rerun_gives_the_same_bytes(tmp_path):
    source = write_checkpoint(tmp_path / "src", shards=2)
    first, second = tmp_path / "first", tmp_path / "second"
    prepare(weights=source, output=first)
    prepare(weights=source, output=second)
    assert contents(first) == contents(second)
    prepare(weights=source, output=first, overwrite=True)
    assert contents(first) == contents(second)


@pytest.mark.parametrize("mode", ["auto", "hardlink", "symlink", "copy"])
def test_the_source_is_untouched(tmp_path, mode):
    source = write_checkpoint(tmp_path / "src", shards=2)
    before = snapshot(source)
    recorder = Recorder()
    prepare(weights=source, output=tmp_path / "out", link_mode=mode, progress=recorder)
    assert snapshot(source) == before
    # Every tensor is read once before the files are placed.
    placed = sum((source / name).stat().st_size for name in SHARDS)
    assert recorder.amount() == Checkpoint.open(source).weight_bytes + placed


@pytest.mark.parametrize("mode", ["auto", "hardlink"])
def test_hard_links_share_the_inode_and_take_no_space(tmp_path, mode):
    source, out = write_checkpoint(tmp_path / "src", shards=2, hidden_size=128), tmp_path / "out"
    size = sum((source / name).stat().st_size for name in SHARDS)
    result = prepare(weights=source, output=out, link_mode=mode)
    for name in SHARDS:
        assert (out / name).samefile(source / name) and not (out / name).is_symlink()
    used = subprocess.run(
        ["du", "-sB1", str(source), str(out)], capture_output=True, text=True, check=True
    )
    both = sum(int(line.split()[0]) for line in used.stdout.splitlines())
    assert size < both < 2 * size
    assert {how for name, _, how in result.files if name in SHARDS} == {"hardlink"}


def test_copies_and_symbolic_links(tmp_path):
    source = write_checkpoint(tmp_path / "src")
    prepare(weights=source, output=tmp_path / "copy", link_mode="copy")
    copy = tmp_path / "copy" / "model.safetensors"
    assert not copy.samefile(source / copy.name)
    assert (copy.read_bytes(), copy.stat().st_nlink) == ((source / copy.name).read_bytes(), 1)
    manifest = read_json(tmp_path / "copy" / MANIFEST)
    assert manifest["files"]["model.safetensors"]["sha256"] == sha256(copy)
    prepare(weights=source, output=tmp_path / "link", link_mode="symlink")
    link = tmp_path / "link" / "model.safetensors"
    assert link.is_symlink()
    assert link.resolve() == source / "model.safetensors"
    Checkpoint.open(tmp_path / "link")


def cannot_link(code):
    def link(source, target):
        raise OSError(code, os.strerror(code))

    return link


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    source, out = write_checkpoint(tmp_path / "src"), tmp_path / "out"
    monkeypatch.setattr(os, "link", cannot_link(18))  # EXDEV
    message = refused(OutputError, weights=source, output=out, link_mode="hardlink")
    assert message == (
        f"{source / 'model.safetensors'} cannot be hard-linked into {tmp_path} (Invalid "
        "cross-device link). Use --link-mode copy or symlink, or an --output on the same file "
        "system."
    )
    assert names(tmp_path) == ["src"]
    result = prepare(weights=source, output=out)
    assert ("model.safetensors", "copy") in [(name, how) for name, _, how in result.files]
    assert (out / "model.safetensors").stat().st_nlink == 1


def hub_cache(tmp_path, **options):
    """Write a checkpoint as the hub's cache keeps it: links into a folder of blobs."""
    real = write_checkpoint(tmp_path / "real", **options)
    cached = tmp_path / "models--x--y" / "snapshots" / ("a" * 40)
    blobs = tmp_path / "models--x--y" / "blobs"
    cached.mkdir(parents=True)
    blobs.mkdir()
    for path in real.iterdir():
        blob = blobs / sha256(path)
        path.rename(blob)
        (cached / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return cached


@pytest.mark.parametrize("mode", ["auto", "symlink", "copy"])
def test_a_source_in_the_hubs_cache(tmp_path, mode):
    source, out = hub_cache(tmp_path, shards=2), tmp_path / "out"
    prepare(weights=source, output=out, link_mode=mode)
    for name in SHARDS:
        blob = (source / name).resolve()
        assert blob.parent.name == "blobs"
        assert (out / name).is_symlink() is (mode == "symlink")
        assert (out / name).samefile(blob) is (mode != "copy")
        assert (out / name).read_bytes() == blob.read_bytes()
    assert not any((out / name).is_symlink() for name in [*SIDES, INDEX])
    assert set(read_tensors(out)) == set(read_tensors(source))


def test_odd_shard_names_get_an_index_where_there_was_none(tmp_path):
    options = {"shard_names": ["b.safetensors", "a.safetensors"], "with_index": False}
    source, out = write_checkpoint(tmp_path / "src", **options), tmp_path / "out"
    result = prepare(weights=source, output=out)
    index = read_json(out / INDEX)
    assert set(index["weight_map"].values()) == {"a.safetensors", "b.safetensors"}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_tensors(out).values())
    assert (INDEX, "generated") in [(name, how) for name, _, how in result.files]
    assert Checkpoint.open(out).has_index


def test_nothing_else_of_the_source_travels(tmp_path):
    source = write_checkpoint(tmp_path / "src", shards=2)
    theirs = "evil.py modeling_qwen2_vacc.py config_vacc.json pytorch_model.bin optimizer.pt"
    theirs += " training_args.bin x.pkl consolidated.safetensors .gitattributes"
    for name in theirs.split():
        (source / name).write_bytes(b"theirs")
    (source / "LICENSE").write_text("MIT")
    (source / "chat_template.jinja").write_text("{{ x }}")
    (source / "figures").mkdir()
    prepare(weights=source, output=tmp_path / "out")
    carried = {"LICENSE", "chat_template.jinja", *SIDES, *SHARDS, INDEX, *SOURCE_FILES}
    assert set(names(tmp_path / "out")) == carried | {VACC, MANIFEST}
    assert b"theirs" not in contents(tmp_path / "out").values()


def test_a_side_file_of_gigabytes_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "src")
    with (source / "vocab.json").open("wb") as file:
        file.truncate((256 << 20) + 1)  # sparse: takes no space
    assert refused(weights=source, output=tmp_path / "out") == (
        f"{source / 'vocab.json'} holds 268,435,457 bytes, expected at most 268,435,456. Restore "
        "the file from the model's original repository."
    )


@pytest.mark.parametrize("shard_names", [None, ["b.safetensors", "a.safetensors"]])
@pytest.mark.parametrize("with_index", [True, False])
def test_a_dry_run_lists_the_same_files_and_writes_nothing(tmp_path, shard_names, with_index):
    layout = {"shard_names": shard_names, "with_index": with_index}
    source = write_checkpoint(tmp_path / "src", **layout)
    before = snapshot(tmp_path)
    plan = prepare(weights=source, output=tmp_path / "out", dry_run=True)
    assert snapshot(tmp_path) == before
    done = prepare(weights=source, output=tmp_path / "out")
    assert [(n, how) for n, _, how in plan.files] == [(n, how) for n, _, how in done.files]
    known = [file for file in plan.files if file[1] is not None]
    assert set(known) <= set(done.files)
    assert all(size != 0 for _, size, _ in plan.files) and plan.files[-1][1] is None
    assert re.search(r"^generated +\d files?: ", plan.to_text(), re.MULTILINE)
    assert plan.notes == done.notes
    assert plan.to_text().startswith(f"Would prepare src in {tmp_path / 'out'}\nhardlink ")
    assert "Next:" not in plan.to_text()


def test_a_dry_run_of_an_output_that_exists_says_what_the_run_needs(tmp_path):
    options = {"weights": write_checkpoint(tmp_path / "src"), "output": tmp_path / "out"}
    prepare(**options)
    note = f"{tmp_path / 'out'} exists and is not empty. Give --overwrite to replace it, or choose"
    plan = prepare(**options, dry_run=True)
    assert plan.notes[-1] == f"without --dry-run this is refused: {note} another --output."
    assert f"\nNote: {plan.notes[-1]}" in plan.to_text()
    assert not any("refused" in text for text in prepare(**options, overwrite=True).notes)


def test_a_dry_run_checks_output_and_space_too(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "src")
    options = {"weights": source, "output": tmp_path / "no" / "out", "dry_run": True}
    assert "does not exist" in refused(OutputError, **options)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    options["output"] = tmp_path / "other"
    prepare(**options)
    options["link_mode"] = "copy"
    message = refused(OutputError, **options)
    size = (source / "model.safetensors").stat().st_size
    assert message.startswith(f"{tmp_path / 'other'} needs {size / 1024:.1f} KiB, ")
    assert "its file system has 1000 B free" in message


def test_result_text_and_dict(tmp_path):
    source, out = write_checkpoint(tmp_path / "Mine"), tmp_path / "out"
    result = prepare(weights=source, output=out)
    size = f"{(source / 'model.safetensors').stat().st_size / 1024:.1f} KiB:"
    lines = result.to_text().splitlines()
    assert lines[0] == f"Prepared Mine in {out}"
    assert lines[1].split() == ["hardlink", "1", "file,", *size.split(), "model.safetensors"]
    assert lines[2].split()[:3] == ["copy", "4", "files,"]
    assert lines[-1] == f"Next: vacc-deploy quantize {out}"
    values = json.loads(json.dumps(result.to_dict()))
    assert list(values) == ["model", "source_dir", "output_dir", "dry_run", "files", "notes"]
    num_bytes = (source / "model.safetensors").stat().st_size
    first = {"name": "model.safetensors", "bytes": num_bytes, "how": "hardlink"}
    assert values["files"][0] == first


def test_the_default_output_lies_in_the_working_directory(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "in" / "My-Model")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert prepare(weights=source).output_dir == Path("My-Model-vacc")
    assert names(tmp_path / "cwd") == ["My-Model-vacc"]
    monkeypatch.chdir(source)
    message = refused(OutputError, weights=Path("."))
    assert message.startswith("The output My-Model-vacc lies inside the input ., which is never")


def test_a_prepared_directory_can_be_prepared_again(tmp_path):
    source = write_checkpoint(tmp_path / "Mine")
    prepare(weights=source, output=tmp_path / "a")
    result = prepare(weights=tmp_path / "a", output=tmp_path / "b")
    assert result.model == "Mine"
    first, second = (contents(tmp_path / name, without=(MANIFEST,)) for name in "ab")
    assert first == second


def test_neither_model_nor_weights():
    assert refused(UsageError) == (
        "Give what to prepare: a checkpoint directory, the id of a repository, or a model name "
        "(see vacc-deploy models). For example:\n  vacc-deploy prepare Distill-Qwen-7B"
    )


def test_an_unknown_model_is_refused_before_anything_else(tmp_path):
    message = refused(UsageError, model="Distil-Qwen-7B", weights=tmp_path / "none")
    assert message.startswith(
        "--model: Unknown model 'Distil-Qwen-7B'. Did you mean Distill-Qwen-7B"
    )
    assert "Known models: Distill-Qwen-1.5B, " in message
    assert message.endswith(
        f"is given by its directory or its repository id, without --model:\n  {tmp_path / 'none'}"
    )
    assert refused(UsageError, model="Distil-Qwen-7B").endswith(", without --model:\n  DIR")


def test_sources_that_contradict_each_other():
    assert refused(UsageError, source="a", weights="b") == (
        "SOURCE a and --weights b both say where the weights are. Give one of them:\n  b"
    )
    text = refused(UsageError, source="Distill-Qwen-7B", weights="b")
    assert text.endswith("\n  b --model Distill-Qwen-7B")
    for name, place in (("source", "SOURCE"), ("weights", "--weights")):
        text = refused(UsageError, model="Distill-Qwen-14B", **{name: "Distill-Qwen-7B"})
        assert text.startswith(f"{place} Distill-Qwen-7B and --model Distill-Qwen-14B are two")


@pytest.mark.parametrize("name", ["source", "weights", "model"])
def test_every_way_to_name_a_directory_gives_the_same_bytes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "Mine")
    assert prepare(**{name: "Mine"}).output_dir == Path("Mine-vacc")
    prepare(weights=tmp_path / "Mine", output=tmp_path / "other")
    assert contents(tmp_path / "Mine-vacc") == contents(tmp_path / "other")


def test_a_directory_of_the_name_of_a_model_wins_over_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "Distill-Qwen-7B")
    assert prepare("Distill-Qwen-7B").model == "Distill-Qwen-7B"
    # --model means the model all the same.
    assert "is not in the Hugging Face cache" in refused(
        model="Distill-Qwen-7B", output=Path("out")
    )


def test_a_prepared_directory_is_prepared_already(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(write_checkpoint(tmp_path / "Mine"))
    assert refused(source="Mine-vacc") == (
        "Mine-vacc is prepared already. Next:\n  vacc-deploy quantize Mine-vacc\n"
        "To prepare it again into another directory, give --output."
    )


def test_another_model_than_named(tmp_path):
    source = write_checkpoint(tmp_path / "src")
    message = refused(model="Distill-Qwen-7B", weights=source, output=tmp_path / "out")
    assert message == (
        f"{source} is not DeepSeek-R1-Distill-Qwen-7B: num_hidden_layers is 2, "
        "expected 28; hidden_size is 64, expected 3584; intermediate_size is 160, expected 18944; "
        "num_attention_heads is 4, expected 28; num_key_value_heads is 2, expected 4; head_dim is "
        "16, expected 128; vocab_size is 272, expected 152064. Leave --model out to prepare it as "
        "it is, or give the right --weights."
    )
    assert names(tmp_path) == ["src"]


def write_known_model(tmp_path, name="DeepSeek-R1-Distill-Qwen-7B", **changes):
    """Write a checkpoint of a model's configuration and shapes; its weights are a sparse file."""
    source, offset, header = write_checkpoint(tmp_path / "src"), 0, {}
    values = {**MODELS[name].config_values, **changes}
    write_json(source / "config.json", values)
    for name, shape in parse_config(values, where="x").expected_tensors().items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return source


def test_another_known_model_is_named(tmp_path):
    # Qwen2.5-Math-7B, which the 7B was distilled into, differs in this alone.
    source = write_known_model(tmp_path, max_position_embeddings=4096)
    message = refused(model="Distill-Qwen-7B", weights=source, output=tmp_path / "out")
    assert ": max_position_embeddings is 4096, expected 131072. Leave --model out" in message
    source = write_known_model(tmp_path)
    message = refused(model="Distill-Qwen-14B", weights=source, output=tmp_path / "out")
    assert "num_hidden_layers is 28, expected 48" in message
    assert "rms_norm_eps is 1e-06, expected 1e-05" in message
    assert " It has the shape of Distill-Qwen-7B. Leave --model out" in message


@pytest.mark.parametrize(
    ("given", "of", "changes"),
    [
        # Two models of one shape.
        ("Skywork-OR1-7B-Preview", "DeepSeek-R1-Distill-Qwen-7B", {}),
        ("qwq-32b", "QwQ-32B", {}),
        ("QwQ-32B", "QwQ-32B", {"max_position_embeddings": 131072}),
        ("R1-0528-Qwen3-8B", "DeepSeek-R1-0528-Qwen3-8B", {}),
    ],
)
def test_a_directory_of_its_shape_is_the_named_model(tmp_path, given, of, changes):
    source = write_known_model(tmp_path, of, **changes)
    result = prepare(model=given, weights=source, output=tmp_path / "out", dry_run=True)
    assert result.model == known_model(given).name


@pytest.mark.parametrize("attn_factor", [MULTIPLY, IGNORE])
def test_another_rule_of_yarn_is_shown_and_another_reading_of_its_factor_is_none(
    tmp_path, attn_factor
):
    name = "DeepSeek-R1-0528-Qwen3-8B"
    source = write_known_model(tmp_path, name)
    options = {"model": name, "weights": source, "output": tmp_path / "out", "dry_run": True}
    assert prepare(**options, attn_factor=attn_factor).model == name
    rule = {**MODELS[name].config_values["rope_scaling"], "factor": 2.0}
    values = {**MODELS[name].config_values, "rope_scaling": rule}
    write_json(source / "config.json", {**values, "max_position_embeddings": 65536})
    message = refused(**options)
    assert "max_position_embeddings is 65536, expected 131072; rope_scaling is {" in message
    assert "'factor': 2.0" in message and "low_freq_factor" not in message


def test_the_named_model_takes_its_name_from_the_catalogue(tmp_path, monkeypatch):
    # Its 15 GB are a hole in the file, which would be found to be zero.
    monkeypatch.setattr("vacc_deploy.prepare.check_weights", lambda *_: ())
    source = write_known_model(tmp_path)
    result = prepare(model="r1-distill-qwen-7b", weights=source, output=tmp_path / "out")
    assert result.model == "DeepSeek-R1-Distill-Qwen-7B"
    manifest = read_json(tmp_path / "out" / MANIFEST)
    # A directory of the user's may be a fine-tune: only the hub's own files are called its own.
    assert manifest["source"] == {"path": "../src", "repository": None, "revision": None}


def test_int8_and_quantized_sources_are_refused(tmp_path):
    source = write_checkpoint(tmp_path / "src")
    deployed = quantize(source, options=QuantizeOptions("rtn")).output_dir
    assert refused(weights=deployed, output=tmp_path / "out") == (
        f"{deployed} holds int8 values already (format vamc). Prepare the float checkpoint it was "
        f"made from: {source}."
    )
    name = "model.layers.0.mlp.up_proj.weight"
    overrides = {"quantization_config": {"a": 1}}
    extra = {name: torch.ones(160, 64, dtype=torch.int8)}
    source = write_checkpoint(tmp_path / "q", config_overrides=overrides, extra_tensors=extra)
    message = refused(UnsupportedModelError, weights=source, output=tmp_path / "out")
    assert "the weights are quantized already. Start from the float checkpoint." in message


@pytest.mark.parametrize("kind", ["weights", "index", "tokenizer"])
def test_files_that_the_source_links_to_are_inputs_too(tmp_path, kind):
    first, second = tmp_path / "A", tmp_path / "B"
    prepare(weights=write_checkpoint(tmp_path / "src", shards=2), output=first, link_mode="copy")
    if kind == "weights":
        prepare(weights=first, output=second, link_mode="symlink")
    else:
        # The one way in which a link may lead out of a directory: to the blobs of a hub's cache.
        name = INDEX if kind == "index" else "tokenizer.json"
        cache = tmp_path / "models--x--y"
        first, second = cache / "blobs", cache / "snapshots" / "0"
        second.parent.mkdir(parents=True)
        (tmp_path / "A").rename(first)
        shutil.copytree(first, second)
        (second / name).unlink()
        (second / name).symlink_to(first / name)
    before = snapshot(tmp_path)
    options = {"weights": second, "output": first, "overwrite": True, "link_mode": "symlink"}
    text = refused(OutputError, **options)
    assert text.startswith(f"The output {first} is the input {first}/")
    assert snapshot(tmp_path) == before


def test_an_output_beside_the_files_that_the_source_links_to(tmp_path):
    """Its other entries are free."""
    source = hub_cache(tmp_path)
    out = source.parents[1] / "blobs" / "out"
    prepare(weights=source, output=out)
    assert Checkpoint.open(out)

"""What travels beside the weights, and the tokenizer.json that is made on the way."""

import hashlib
import json

import pytest
import torch
from checkpoint_builders import write_checkpoint, write_json
from doubles import Recorder
from texts import read_json, sha256
from token_fixtures import TEXT, added_token, their_ids, train_backend, write_files
from tokenizer_builders import write_tokenizer
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import TokenConflictError
from vacc_deploy.outputs.files import side_files
from vacc_deploy.outputs.side_files import plan_side_files
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.text.tokenizer import Tokenizer

SIZE = train_backend().get_vocab_size()
RTN = QuantizeOptions("rtn", formats=("int8",))
STALE = {"config": {"added_tokens_decoder": {str(SIZE): added_token("<think>")}}}
SLOW = {"slow": True, "added": {"<|endoftext|>": SIZE, "<think>": SIZE + 1}}
KINDS = {"stale": STALE, "slow": SLOW}
SLOW_FILES = {"vocab.json", "merges.txt", "added_tokens.json"}


def make_source(directory, kind):
    """Write a checkpoint whose tokenizer.json is missing or lacks tokens."""
    # For a Qwen2 transformers puts Qwen2's own splitting in place of that of tokenizer.json.
    sizes = {"model_type": "qwen2" if kind == "slow" else "llama", "vocab_size": 480}
    source = write_checkpoint(directory, with_tokenizer=False, **sizes)
    config = read_json(source / "config.json")
    write_files(source, **sizes, **KINDS[kind])
    write_json(source / "config.json", config)
    return source


def same_ids(source, output):
    """Compare our ids of both directories, and those of transformers for the new one."""
    tokenizer = Tokenizer.from_dir(output)
    expected = Tokenizer.from_dir(source).encode(TEXT, add_bos=False)
    assert tokenizer.encode(TEXT, add_bos=False) == expected == their_ids(output)
    assert tokenizer.notes == ()
    return True


def token_rules(source):
    """Return what is told of a tokenizer that is written anew."""
    return [f"{note[:-1]} (rule token-files)." for note in Tokenizer.from_dir(source).notes]


def test_a_whole_tokenizer_is_copied(tmp_path):
    source = write_checkpoint(tmp_path / "src")
    files, applied, notes = plan_side_files(Checkpoint.open(source), with_config=True)
    assert [file.name for file in files] == [p.name for p in side_files(source, with_config=True)]
    assert {file.how for file in files} == {"copy"} and notes == applied == ()


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_writes_the_settled_tokenizer(tmp_path, kind):
    source, out = make_source(tmp_path / "src", kind), tmp_path / "out"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    plan = prepare(source, output=out, dry_run=True)
    result = prepare(source, output=out)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert same_ids(source, out)
    path = out / "tokenizer.json"
    entry = ("tokenizer.json", path.stat().st_size, "generated")
    assert entry in plan.files and entry in result.files
    assert [name for name, _, _ in result.files].count("tokenizer.json") == 1
    assert plan.notes == result.notes
    expected = token_rules(source)
    assert [note for note in result.notes if "tokenizer.json" in note] == expected
    applied = read_json(out / "vacc_deploy.json")["normalized"]
    assert [f"{entry['note'][:-1]} (rule {entry['rule']})." for entry in applied] == expected
    manifest = read_json(out / "vacc_deploy.json")["files"]["tokenizer.json"]
    assert manifest == {"bytes": path.stat().st_size, "sha256": sha256(path)}
    if kind == "slow":
        assert {path.name for path in out.iterdir()} >= SLOW_FILES
    # The prepared directory needs nothing more.
    assert plan_side_files(Checkpoint.open(out), with_config=True).notes == ()


@pytest.mark.parametrize("kind", KINDS)
def test_quantize_of_a_checkpoint_writes_the_settled_tokenizer(tmp_path, kind):
    source, progress = make_source(tmp_path / "src", kind), Recorder()
    options = QuantizeOptions("rtn", formats=("int8", "vamc"))
    result = quantize(source, options=options, output=tmp_path / "out", progress=progress)
    for layout in options.formats:
        output = tmp_path / "out" / layout
        assert same_ids(source, output)
        digest = hashlib.sha256((output / "tokenizer.json").read_bytes()).hexdigest()
        assert read_json(output / "vacc_deploy.json")["files"]["tokenizer.json"]["sha256"] == digest
    prepared = prepare(source, output=tmp_path / "prepared").output_dir
    assert (prepared / "tokenizer.json").read_bytes() == (output / "tokenizer.json").read_bytes()
    assert list(result.notes) == token_rules(source)
    assert set(result.notes) <= set(progress.said)


def test_a_disagreement_ends_prepare_and_quantize_before_anything_is_written(tmp_path):
    source = make_source(tmp_path / "src", "stale")
    write_json(source / "added_tokens.json", {"<think>": SIZE + 1})
    with pytest.raises(TokenConflictError, match="'<think>' two ids"):
        prepare(source, output=tmp_path / "out")
    with pytest.raises(TokenConflictError, match="'<think>' two ids"):
        quantize(source, options=RTN)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("tokenizer.json", "[]", "tokenizer.json cannot be used"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("added_tokens.json", "[]", "added_tokens.json cannot be used"),
    ],
)
def test_an_unusable_tokenizer_is_a_note(tmp_path, name, content, text):
    source = write_checkpoint(tmp_path / "src")
    (source / name).write_text(content)
    result = prepare(source, output=tmp_path / "out")
    (note,) = [note for note in result.notes if "tokenizer" in note]
    assert note.startswith("quantize and verify will need a tokenizer, and cannot use this one. ")
    assert text in note
    assert (tmp_path / "out" / name).read_text() == content
    assert quantize(source, options=RTN, output=tmp_path / "int8").notes == (note,)


def test_templates_do_not_matter_for_what_is_written(tmp_path):
    source = write_checkpoint(tmp_path / "src")
    config = {"chat_template": [{"name": "rag", "template": "{% if %}"}]}
    write_tokenizer(source, config=config)
    assert plan_side_files(Checkpoint.open(source), with_config=False).notes == ()
    assert json.loads((source / "tokenizer_config.json").read_text()) == config


@pytest.mark.parametrize("kind", ["plain", "slow"])
def test_byte_order_marks_are_read_and_left_out(tmp_path, kind):
    if kind == "slow":
        source = make_source(tmp_path / "src", kind)
    else:
        source = write_checkpoint(tmp_path / "src", model_type="llama", shards=2)
    template = "{{ messages[0].content }}"
    (source / "chat_template.jinja").write_text(template)
    clean = {path.name: path.read_bytes() for path in source.iterdir()}
    marked = {name for name in clean if not name.endswith(".safetensors")}
    expected = Tokenizer.from_dir(source).encode(TEXT, add_bos=False)
    for name in marked:
        (source / name).write_bytes(b"\xef\xbb\xbf" + clean[name])
    tokenizer = Tokenizer.from_dir(source)
    assert tokenizer.encode(TEXT, add_bos=False) == expected
    turns = [{"role": "user", "content": "Hi"}]
    assert tokenizer.render_chat(turns, add_generation_prompt=False) == "Hi"
    plan = prepare(source, output=tmp_path / "out", dry_run=True)
    result = prepare(source, output=tmp_path / "out")
    assert plan.notes == result.notes
    (note,) = [note for note in result.notes if note.endswith("(rule byte-order-mark).")]
    assert all(name in note for name in marked)
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name: written[name] for name in marked} == {name: clean[name] for name in marked}
    again = prepare(tmp_path / "out", output=tmp_path / "again")
    assert not any("byte-order-mark" in note for note in again.notes)
    if kind == "plain":
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert their_ids(tmp_path / "out") == expected

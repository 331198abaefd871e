import json
import shutil
import weakref

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint
from tokenizer_builders import EOS_ID, tokenizer_config, write_tokenizer

from vacc_deploy.calibration import own_answers
from vacc_deploy.calibration.own_answers import OwnAnswers, read_sampling
from vacc_deploy.calibration.rows import build_rows
from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.plan import read_calibration_rows
from vacc_deploy.quantize.run import quantize
from vacc_deploy.text.tokenizer import Tokenizer

PROMPTS = [[256, 258, 65, 259], [256, 258, 66, 67, 259]]


class Listener(Progress):
    def __init__(self):
        self.notes, self.warnings = [], []

    def advance(self, amount=1, note=""):
        self.notes += [note] if note else []

    def warn(self, message):
        self.warnings.append(message)


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model")


def make_writer(source, cache_dir, **changes):
    options = {"max_new_tokens": 6, "seed": 0, **changes}
    return OwnAnswers(
        Checkpoint.open(source), Tokenizer.from_dir(source), cache_dir=cache_dir, **options
    )


def write_alpaca(directory, num_records=40):
    path = directory / "alpaca.json"
    records = [{"instruction": f"question {n}", "output": "data"} for n in range(num_records)]
    path.write_text(json.dumps(records), "utf-8")
    return CalibrationSource("alpaca", path)


def forbid_loading(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(own_answers, "load_model", fail)


def test_answers_are_bounded_repeatable_and_written_once(tmp_path, source, monkeypatch):
    listener = Listener()
    writer = make_writer(source, tmp_path / "1", progress=listener)
    answers = writer.write(PROMPTS)
    assert [1 <= len(ids) <= 6 for ids in answers] == [True, True]
    assert listener.notes[0].startswith("2 own answers, ") and "tokens/s" in listener.notes[0]
    # Other answers in between change nothing.
    other = make_writer(source, tmp_path / "2")
    other.write([[256, 258, 70, 259]])
    assert other.write(PROMPTS) == answers
    assert make_writer(source, tmp_path / "3", seed=1).write(PROMPTS) != answers
    forbid_loading(monkeypatch)
    cached = make_writer(source, tmp_path / "1")
    assert cached.write(PROMPTS) == answers
    assert cached.describe() == writer.describe()


def test_describe_names_settings_and_hashes(tmp_path, source):
    writer = make_writer(source, tmp_path / "1")
    answers = writer.write(PROMPTS)
    report = writer.describe()
    assert report["tokens"] == sum(map(len, answers)) and report["answers"] == 2
    assert (report["temperature"], report["top_p"], report["top_k"]) == (0.6, 0.95, 0)
    assert (report["max_new_tokens"], report["seed"]) == (6, 0)
    assert len(report["identity_sha256"]) == len(report["answers_sha256"]) == 64


def test_sampling_leaves_the_callers_random_state(tmp_path, source):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_writer(source, tmp_path / "1").write(PROMPTS)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("change", ["weights", "template", "sampling", "tokens", "seed"])
def test_whatever_shapes_an_answer_changes_the_cache_file(tmp_path, source, change):
    before = make_writer(source, tmp_path / "c").describe()["identity_sha256"]
    options = {}
    if change == "weights":
        # The same header and size: a fine-tune of the same model.
        path = next(source.glob("*.safetensors"))
        data = bytearray(path.read_bytes())
        half = len(data) // 2
        data[half:] = bytes(value ^ 1 for value in data[half:])
        path.write_bytes(data)
    elif change == "template":
        write_tokenizer(source, config=tokenizer_config(chat_template="{{bos_token}}x"))
    elif change == "sampling":
        (source / "generation_config.json").write_text('{"temperature": 0.7}', "utf-8")
    elif change == "tokens":
        options["max_new_tokens"] = 7
    else:
        options["seed"] = 1
    after = make_writer(source, tmp_path / "c", **options).describe()["identity_sha256"]
    assert after != before


def test_a_copy_of_the_directory_uses_the_same_cache_file(tmp_path, source):
    shutil.copytree(source, tmp_path / "copy")
    digests = {
        make_writer(directory, tmp_path / "c").describe()["identity_sha256"]
        for directory in (source, tmp_path / "copy")
    }
    assert len(digests) == 1


def test_rows_hold_prompts_with_the_models_own_answers(tmp_path, source):
    tokenizer, calibration = Tokenizer.from_dir(source), write_alpaca(tmp_path)
    writer = make_writer(source, tmp_path / "c")
    rows = build_rows(
        [calibration],
        tokenizer,
        num_samples=4,
        sequence_length=32,
        seed=0,
        vocab_size=Checkpoint.open(source).config.vocab_size,
        writer=writer,
    )
    text = tokenizer.decode(rows.tokens.ravel().tolist())
    assert "question" in text and "data" not in text
    report = rows.to_dict()
    assert report["sources"][0]["own_answers"] is True
    assert report["answers"] == writer.describe()
    # Not the whole file: 40 questions of 14 tokens and more.
    assert report["answers"]["answers"] <= 16


def test_an_interrupted_run_goes_on_from_the_cache(tmp_path, source, monkeypatch):
    whole = make_writer(source, tmp_path / "whole")
    batches = [[[256, 258, 65 + n, 259]] for n in range(3)]
    expected = [whole.write(batch) for batch in batches]
    make_writer(source, tmp_path / "c").write(batches[0])
    again = make_writer(source, tmp_path / "c")
    assert [again.write(batch) for batch in batches] == expected
    forbid_loading(monkeypatch)
    last = make_writer(source, tmp_path / "c")
    assert [last.write(batch) for batch in batches] == expected


def test_the_model_answers_on_the_device_of_the_run_and_is_let_go(tmp_path, source, monkeypatch):
    class Model:
        def to(self, device):
            devices.append(device)
            return self

    devices, models = [], []

    def load(*_, **__):
        model = Model()
        model.itself = model  # as models may: counting references alone does not free it
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(own_answers, "load_model", load)
    monkeypatch.setattr(
        own_answers, "complete", lambda _, __, prompts, **___: [[65]] * len(prompts)
    )
    options = QuantizeOptions(
        "gptq",
        (write_alpaca(tmp_path),),
        num_samples=4,
        sequence_length=32,
        answers="own",
        answers_cache=tmp_path / "cache",
        device="cuda:1",
    )
    rows = read_calibration_rows(Checkpoint.open(source), options, Progress(), dry_run=False)
    assert rows.tokens.shape == (4, 32)
    assert devices == ["cuda:1"]
    assert [model() for model in models] == [None]


def test_the_cache_of_one_device_is_not_anothers(tmp_path, source):
    digests = {
        make_writer(source, tmp_path / "c", device=device).describe()["identity_sha256"]
        for device in ("cpu", "cuda", "cuda:1")
    }
    assert len(digests) == 2


def test_quantize_with_own_answers(tmp_path, source):
    options = QuantizeOptions(
        "gptq",
        (write_alpaca(tmp_path),),
        num_samples=4,
        sequence_length=32,
        answers="own",
        max_answer_tokens=6,
        answers_cache=tmp_path / "cache",
    )
    listener = Listener()
    plan = quantize(source, options=options, dry_run=True, progress=listener)
    assert plan.calibration["answers"] is None
    assert listener.warnings[0].startswith("A dry run writes no answers: the plan counts the ")
    assert not (tmp_path / "cache").exists()
    result = quantize(source, options=options)
    assert result.calibration["answers"]["written_by"] == "model"
    report = json.loads((result.output_dir / "quantize_report.json").read_text("utf-8"))
    assert report["options"]["answers"] == "own"
    assert report["options"]["max_answer_tokens"] == 6
    assert report["calibration"]["answers"] == result.calibration["answers"]
    first = read_tensors(result.output_dir)
    again = quantize(source, options=options, output=tmp_path / "again").output_dir
    second = read_tensors(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert str(tmp_path) not in json.dumps(report)
    # A dry run has no answers to compare with those of the output; a resumed run has.
    assert quantize(source, options=options, dry_run=True, resume=True).dry_run
    assert quantize(source, options=options, resume=True).already_finished


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, (0.6, 0.95, 0)),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, (0.7, 0.8, 20)),
        ({"temperature": 0, "top_p": 1}, (0.6, 1.0, 0)),
        ({"temperature": None, "top_k": None}, (0.6, 0.95, 0)),
    ],
)
def test_read_sampling(tmp_path, stated, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(stated), "utf-8")
    values = read_sampling(tmp_path)
    assert (values["temperature"], values["top_p"], values["top_k"]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds list, expected a JSON object"),
        ('{"temperature": "hot"}', "temperature is 'hot', expected above 0, to 5.0"),
        ('{"temperature": -1}', "temperature is -1"),
        ('{"temperature": 1e999}', "temperature is inf"),
        ('{"top_p": 0}', "top_p is 0, expected above 0, to 1"),
        ('{"top_p": true}', "top_p is True"),
        ('{"top_k": 1.5}', "top_k is 1.5, expected an integer of 0 or more"),
    ],
)
def test_read_sampling_refuses_values_out_of_range(tmp_path, text, message):
    (tmp_path / "generation_config.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_sampling(tmp_path)


def test_no_template_and_no_room_are_usage_errors(tmp_path, source):
    context = Checkpoint.open(source).config.max_position_embeddings
    with pytest.raises(UsageError, match="leaves no room for a prompt in the model's context"):
        make_writer(source, tmp_path / "c", max_new_tokens=context)
    write_tokenizer(source, config=tokenizer_config(chat_template=None))
    with pytest.raises(UsageError, match="has no chat template.*--answers data"):
        make_writer(source, tmp_path / "c")


def test_weights_without_probabilities_are_an_error(tmp_path):
    table = torch.full((272, 64), float("inf"), dtype=torch.bfloat16)
    source = write_checkpoint(
        tmp_path / "model", extra_tensors={"model.embed_tokens.weight": table}
    )
    with pytest.raises(CheckpointError, match="infinite or undefined probabilities"):
        make_writer(source, tmp_path / "c").write(PROMPTS)


def test_answers_end_with_the_end_token(tmp_path):
    head = torch.zeros(272, 64)
    head[EOS_ID] = 100.0
    extra = {
        "lm_head.weight": head,
        "model.embed_tokens.weight": torch.ones(272, 64),
        "model.norm.weight": torch.ones(64),
    }
    for layer in range(2):
        extra[f"model.layers.{layer}.self_attn.o_proj.weight"] = torch.zeros(64, 64)
        extra[f"model.layers.{layer}.mlp.down_proj.weight"] = torch.zeros(64, 160)
    source = write_checkpoint(
        tmp_path / "model", extra_tensors={n: t.bfloat16() for n, t in extra.items()}
    )
    assert make_writer(source, tmp_path / "c").write(PROMPTS) == [[EOS_ID], [EOS_ID]]

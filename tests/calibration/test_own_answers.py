import gc
import json
import shutil
import weakref

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint
from doubles import Recorder
from texts import read_json, write_alpaca
from tokenizer_builders import tokenizer_config, write_tokenizer
from transformers import PreTrainedModel

from vacc_deploy.calibration.conversations import DocumentEncoder
from vacc_deploy.calibration.own_answers import OwnAnswers
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.text.tokenizer import Tokenizer

PROMPTS = [[256, 258, 65, 259], [256, 258, 66, 67, 259]]


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model")


def make_writer(source, cache_dir, max_new_tokens=6, seed=0, device="cpu", **options):
    values = {"max_new_tokens": max_new_tokens, "seed": seed, "device": device}
    model = Checkpoint.open(source), Tokenizer.from_dir(source)
    return OwnAnswers(*model, cache_dir=cache_dir, **values, **options)


def make_reader(source, cache_dir):
    """Return a writer that must take every answer from the cache."""
    return make_writer(source, cache_dir, load=lambda *_, **__: pytest.fail("loaded the model"))


def identity(source, cache_dir, **options):
    return make_writer(source, cache_dir, **options).describe()["identity_sha256"]


def test_answers_are_bounded_repeatable_and_written_once(tmp_path, source):
    recorder = Recorder()
    writer = make_writer(source, tmp_path / "1", progress=recorder)
    answers = writer.write(PROMPTS)
    assert [1 <= len(ids) <= 6 for ids in answers] == [True, True]
    (note,) = recorder.notes()
    assert note.startswith("2 own answers, ") and note.endswith(" tokens/s")
    # Other answers in between change nothing, so a run that was interrupted goes on.
    other = make_writer(source, tmp_path / "2")
    other.write([[256, 258, 70, 259]])
    assert other.write(PROMPTS) == answers
    assert make_writer(source, tmp_path / "3", seed=1).write(PROMPTS) != answers
    cached = make_reader(source, tmp_path / "1")
    assert cached.write(PROMPTS) == answers
    assert cached.describe() == writer.describe()


def test_describe_names_settings_and_hashes_and_the_random_state_stays(tmp_path, source):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    writer = make_writer(source, tmp_path / "1")
    answers = writer.write(PROMPTS)
    assert torch.equal(torch.rand(3), expected)
    report = writer.describe()
    assert len(report.pop("identity_sha256")) == len(report.pop("answers_sha256")) == 64
    assert report == {
        "written_by": "model",
        "answers": 2,
        "tokens": sum(map(len, answers)),
        "max_new_tokens": 6,
        "seed": 0,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 0,
    }


def test_whatever_shapes_an_answer_is_in_the_identity_and_no_path_is(tmp_path, source):
    cache = tmp_path / "c"
    options = ({}, {"max_new_tokens": 7}, {"seed": 1}, {"device": "cuda"}, {"device": "cuda:1"})
    found = [identity(source, cache, **changes) for changes in options]
    # The kind of device counts, not its number.
    assert found[-1] == found[-2]
    shutil.copytree(source, tmp_path / "copy")
    assert identity(tmp_path / "copy", cache) == found[0]
    write_tokenizer(source, config=tokenizer_config(chat_template="{{bos_token}}x"))
    found.append(identity(source, cache))
    (source / "added_tokens.json").write_text('{"<tool>": 260}', "utf-8")
    found.append(identity(source, cache))
    (source / "generation_config.json").write_text('{"temperature": 0.7}', "utf-8")
    found.append(identity(source, cache))
    # The same header and size: a fine-tune of the same model.
    path = next(source.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half:] = bytes(value ^ 1 for value in data[half:])
    path.write_bytes(data)
    assert len({*found, identity(source, cache)}) == len(found)


class ReferringModel:
    """Answers "A" wherever it runs; refers to itself, so counting references does not free it."""

    generation_config = None

    def __init__(self, devices):
        self.itself, self._devices = self, devices

    def to(self, device):
        self._devices.append(device)
        return self

    def generate(self, ids, **_):
        return torch.cat([ids, torch.full((len(ids), 1), 65)], dim=1)


def test_the_model_answers_on_the_device_of_the_settings_and_is_let_go(tmp_path, source):
    devices, models = [], []

    def load(*_, **__):
        model = ReferringModel(devices)
        models.append(weakref.ref(model))
        return model

    writer = make_writer(source, tmp_path / "c", device="cuda:1", load=load)
    assert writer.write(PROMPTS) == [[65], [65]]
    writer.release()
    assert devices == ["cuda:1"]
    assert [model() for model in models] == [None]


class ModelCounter(Recorder):
    """Counts the models in memory whenever a new kind of work starts."""

    def __init__(self):
        super().__init__()
        gc.collect()  # models of other tests
        self._before, self.alive = self._count(), []

    def start(self, description, total, unit):
        self.alive.append(self._count() - self._before)

    @staticmethod
    def _count():
        return sum(issubclass(type(item), PreTrainedModel) for item in gc.get_objects())


def test_quantize_with_own_answers(tmp_path, source):
    options = QuantizeOptions(
        "gptq",
        (write_alpaca(tmp_path, 40),),
        num_samples=4,
        sequence_length=32,
        answers="own",
        max_answer_tokens=6,
        answers_cache=tmp_path / "cache",
    )
    recorder = Recorder()
    plan = quantize(source, options=options, dry_run=True, progress=recorder)
    assert plan.calibration["answers"] is None
    assert recorder.warnings[0].startswith("A dry run writes no answers: the plan counts the ")
    assert not (tmp_path / "cache").exists()
    counter = ModelCounter()
    result = quantize(source, options=options, progress=counter)
    # The model is gone before the quantizer begins.
    assert len(counter.alive) >= 2 and not any(counter.alive)
    assert result.calibration["answers"]["written_by"] == "model"
    report = read_json(result.output_dir / "quantize_report.json")
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
    ("changes", "problem"),
    [
        ({}, "gives the id 259 for text of alpaca.json, but the model has vocab_size 258"),
        (
            {"chat_template": "{{ '' }}", "add_bos_token": False},
            "tokenizer_config.json cannot be used: its chat template writes nothing for a prompt",
        ),
    ],
)
def test_a_prompt_that_no_model_can_continue_is_an_error_before_one_is_asked(
    tmp_path, changes, problem
):
    source = write_checkpoint(tmp_path / "model", vocab_size=258)
    write_tokenizer(source, config=tokenizer_config(**changes))
    tokenizer = Tokenizer.from_dir(source)
    encoder = DocumentEncoder(
        write_alpaca(tmp_path),
        tokenizer,
        258,
        writer=make_reader(source, tmp_path / "cache"),
        progress=Recorder(),
    )
    chat = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    with pytest.raises(CheckpointError, match=problem):
        encoder.encode([chat])


def test_no_template_and_no_room_are_usage_errors(tmp_path, source):
    context = Checkpoint.open(source).config.max_position_embeddings
    with pytest.raises(UsageError, match="leaves no space for a prompt in the model's context"):
        make_writer(source, tmp_path / "c", max_new_tokens=context)
    write_tokenizer(source, config=tokenizer_config(chat_template=None))
    with pytest.raises(UsageError, match="has no chat template.*--answers data"):
        make_writer(source, tmp_path / "c")


def test_weights_without_probabilities_are_an_error(tmp_path):
    table = torch.full((272, 64), float("inf"), dtype=torch.bfloat16)
    source = write_checkpoint(
        tmp_path / "model", extra_tensors={"model.embed_tokens.weight": table}
    )
    with pytest.raises(
        CheckpointError, match="probabilities that are infinite, undefined or all the same"
    ):
        make_writer(source, tmp_path / "c").write(PROMPTS)

"""Texts by domain, and generated answers judged by their boxed result."""

import json

import pytest
from checkpoint_builders import read_tensors, write_checkpoint
from click.testing import CliRunner
from safetensors.torch import save_file

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError
from vacc_deploy.evaluation import math as math_module
from vacc_deploy.evaluation.math import DIRECTIVE, evaluate_math
from vacc_deploy.evaluation.text import evaluate_text
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.sampling import SamplingOptions
from vacc_deploy.reference.verify import verify

WORDS = "The quick brown fox jumps over the lazy dog. " * 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    source = write_checkpoint(folder / "model", scale=2.0)
    return source, quantize(source, options=QuantizeOptions("rtn", formats=("int8",))).output_dir


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    lines = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(10)]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def run_json(*arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_each_domain_has_the_figures_of_verify(pair, tmp_path):
    files = {}
    for name, text in (("words", WORDS), ("signs", "0123456789 !?" * 20)):
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text(text, "utf-8")
    result = evaluate_text(pair[1], files, max_tokens=128, sequence_length=64)
    for name, path in files.items():
        alone = verify(pair[1], text_file=path, max_tokens=128, sequence_length=64, limits=None)
        assert result.scores[name].to_dict() == alone.scores.to_dict()
    code, values = run_json(
        *("evaluate", pair[1], "--task", "text", "--max-tokens", 128, "--seq-len", 64),
        *(word for name, path in files.items() for word in ("--data", f"{name}={path}")),
    )
    assert code == 0 and values["domains"].keys() == files.keys()
    assert values["domains"]["words"]["mean_kl"] == result.scores["words"].mean_kl
    assert "words" in result.to_text() and " ± " in result.to_text()


def test_a_float_model_that_is_not_the_source_is_refused_or_told(pair, tmp_path):
    """Where no manifest tells how a directory was made, another tool may have changed norms."""
    source, deployed = pair
    other = write_checkpoint(tmp_path / "other", scale=2.0, seed=7)
    text = tmp_path / "text.txt"
    text.write_text(WORDS, "utf-8")
    command = ("evaluate", "--task", "text", "--data", f"words={text}", "--reference")
    code, values = run_json(*command, other, deployed)
    assert code == 1
    assert values["error"]["message"].startswith(f"{deployed} was not made from {other}: ")
    assert values["error"]["message"].endswith("Give the right float model with --reference.")
    code, values = run_json(*command, other, source)
    assert code == 0 and any("was not copied from" in note for note in values["notes"])


def test_a_model_that_gives_nan_is_refused_with_the_domain(tmp_path):
    source, broken = (write_checkpoint(tmp_path / name) for name in ("model", "broken"))
    tensors = read_tensors(broken)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    text = tmp_path / "text.txt"
    text.write_text(WORDS, "utf-8")
    for pair in ((broken, source), (source, broken)):
        with pytest.raises(CheckpointError, match=f"{broken} gives NaN or infinity for the text w"):
            evaluate_text(pair[0], {"words": text}, reference_dir=pair[1], max_tokens=64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (("plain.txt",), "is no NAME=FILE"),
        (("a=x.txt", "a=y.txt"), "names a domain a second time"),
        ((), "takes one --data or several"),
    ],
)
def test_domains_without_a_name_or_named_twice_are_refused(pair, data, message):
    given = [word for value in data for word in ("--data", value)]
    code, values = run_json("evaluate", pair[1], "--task", "text", *given)
    assert code == 2 and message in values["error"]["message"]


class Writer:
    """Writes what it is told to, as a model would."""

    def __init__(self, texts):
        self.texts, self.prompts = list(texts), []

    def __call__(self, model, tokenizer, prompts, *, max_new_tokens, sampling):
        self.prompts += [tokenizer.decode(ids) for ids in prompts]
        texts = [self.texts.pop(0) for _ in prompts]
        ends = {text: [tokenizer.eos_id] if text.endswith(".") else [] for text in texts}
        return [[*tokenizer.encode(text, add_bos=False), *ends[text]] for text in texts]


def test_boxed_results_are_judged_for_both_models(pair, problems, monkeypatch):
    writer = Writer([r"so \boxed{1}.", r"\boxed{2}.", "no box", r"\boxed{1.0}.", r"\boxed{9}.", ""])
    monkeypatch.setattr(math_module, "continue_prompts", writer)
    result = evaluate_math(pair[1], problems, limit=3, options=SamplingOptions(greedy=True))
    values, text = result.to_dict(), result.to_text()
    # Of the float model 1 and 2 are right, of the deployed one 1.
    assert [values[f"accuracy_{name}"] for name in ("float", "deployed")] == [2 / 3, 1 / 3]
    assert (values["without_box_float"], values["without_box_deployed"]) == (1, 1)
    assert (values["cut_float"], values["cut_deployed"]) == (1, 1)
    assert values["answers"][1]["deployed"]["boxed"] == "9" and "9 (wrong)" in text
    assert "greedy, at most 4,096 new tokens" in text and "1 float, 1 deployed" in text
    assert all(DIRECTIVE in prompt for prompt in writer.prompts)


def test_batches_draw_other_tokens_and_both_models_the_same(pair, problems, monkeypatch):
    seeds = []

    def write(model, tokenizer, prompts, *, max_new_tokens, sampling):
        seeds.append((len(prompts), sampling.seed))
        return [[5] for _ in prompts]

    monkeypatch.setattr(math_module, "continue_prompts", write)
    evaluate_math(pair[1], problems, options=SamplingOptions(temperature=0.6, seed=3))
    assert seeds == [(8, 3), (2, 11)] * 2


def test_the_command_lets_a_trained_model_answer(tmp_path, problems):
    """The demo model writes sums without a box: each is counted as one without."""
    code, values = run_json(
        *("evaluate", demo_model_dir(), "--reference", demo_model_dir(), "--task", "math"),
        *("--data", problems, "--limit", 2, "--max-new-tokens", 6, "--greedy"),
    )
    assert code == 0 and values["questions"] == 2 and values["sampling"] == {"greedy": True}
    first = values["answers"][0]
    assert first["float"] == first["deployed"] and 0 < first["float"]["num_tokens"] <= 6
    assert values["without_box_float"] == values["without_box_deployed"] == 2


def test_a_question_that_does_not_fit_is_named(tmp_path, problems):
    source = write_checkpoint(tmp_path / "model", config_overrides={"max_position_embeddings": 300})
    code, values = run_json(
        *("evaluate", source, "--reference", source, "--task", "math", "--data", problems),
        *("--max-new-tokens", 290),
    )
    assert code == 2 and "The question begins with '0+1?'" in values["error"]["message"]

"""The likelihood of continuations, alone and through lm-evaluation-harness if it is installed."""

import sys
import types

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint
from reference_logits import make_directory
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.evaluation import __main__ as start
from vacc_deploy.evaluation.continuations import Continuation, score_continuations
from vacc_deploy.evaluation.walk import Walk
from vacc_deploy.text.tokenizer import Tokenizer

ASKED = [
    Continuation((30, 31, 32, 33), (40, 41)),
    Continuation((9,), (50, 51, 52)),
    Continuation((30, 31, 32, 33), (42,)),
    Continuation((30, 31, 32, 33), (40, 43, 44)),
]


def their_likelihood(model, context, ids):
    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *ids][:-1]])).logits[0, -len(ids) :].double()
    scores = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])
    return scores.sum().item(), logits.argmax(1).tolist() == list(ids)


def load(directory):
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("sizes", [{}, {"state_bytes": 1, "tree_tokens": 8}])
def test_likelihoods_equal_those_of_transformers_in_the_order_of_the_requests(tmp_path, sizes):
    directory = write_checkpoint(tmp_path / "model", scale=2.0)
    model = load(directory)
    with torch.inference_mode():
        top = int(model(torch.tensor([[9, 8]])).logits[0, -1].argmax())
    asked = [*ASKED, Continuation((9, 8), (top,))]
    got = score_continuations(Walk(Checkpoint.open(directory), **sizes), asked)
    expected = [their_likelihood(model, *each) for each in asked]
    assert [each.log_p for each in got] == pytest.approx([p for p, _ in expected], abs=1e-3)
    assert [each.is_greedy for each in got] == [greedy for _, greedy in expected]
    assert got[-1].is_greedy and not all(each.is_greedy for each in got)


def test_ids_that_the_model_lacks_are_refused(tmp_path):
    walk = Walk(Checkpoint.open(write_checkpoint(tmp_path / "model")))
    with pytest.raises(CheckpointError, match="gives the id 5000"):
        score_continuations(walk, [Continuation((1,), (5000,))])


def test_a_model_that_gives_nan_is_refused(tmp_path):
    directory = write_checkpoint(tmp_path / "model")
    tensors = read_tensors(directory)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="gives NaN or infinity for a continuation"):
        score_continuations(Walk(Checkpoint.open(directory)), ASKED)


def test_without_the_harness_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit, match=r"pip install 'vacc-deploy\[harness\]'"):
        start.main()


# ---- lm-evaluation-harness ---------------------------------------------------------------------


def requests(*arguments):
    return [types.SimpleNamespace(args=each) for each in arguments]


@pytest.fixture
def harness():
    pytest.importorskip("lm_eval")
    from vacc_deploy.evaluation import harness

    return harness


def test_the_model_is_registered_beside_the_harness_s_own(harness):
    from lm_eval.api.registry import get_model

    assert get_model("vacc") is harness.VaccLM and get_model("hf") is not harness.VaccLM


def test_texts_are_scored_as_the_harness_s_own_model_scores_them(harness, tmp_path):
    from lm_eval.models.huggingface import HFLM

    directory = write_checkpoint(tmp_path / "model", scale=2.0)
    ours, theirs = (
        harness.VaccLM(str(directory), max_length=24),
        HFLM(str(directory), dtype="float32", device="cpu", max_length=24, batch_size=1),
    )
    pairs = requests(("The quick", " brown"), ("The quick", " red"), ("", "fox"), ("a " * 30, "b"))
    for mine, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert mine == (pytest.approx(other[0], abs=1e-3), other[1])
    texts = requests(("The quick brown fox jumps over the lazy dog.",), ("x",))
    expected = theirs.loglikelihood_rolling(texts)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, abs=1e-3)


def test_codes_are_scored_and_texts_are_written_up_to_their_stop(harness, tmp_path):
    directory = make_directory(tmp_path, form="int8")
    model = harness.VaccLM(str(directory), batch_size=1, device="cpu")
    ((log_p, _),) = model.loglikelihood(requests(("The", " quick")))
    assert log_p < 0
    options = {"until": [], "max_gen_toks": 6, "do_sample": False}
    (whole, again) = model.generate_until(requests(("ab", options), ("ab", options)))
    assert whole == again and len(whole) >= 2
    (cut,) = model.generate_until(requests(("ab", {**options, "until": [whole[1]]})))
    assert cut == whole.partition(whole[1])[0]
    assert Tokenizer.from_dir(directory).adds_bos == (model.tok_encode("a")[0] == 256)


@pytest.mark.parametrize(
    "options",
    [{"device": "cuda"}, {"activations": "int4"}, {"max_length": -5}, {"max_length": "long"}],
)
def test_what_the_model_cannot_do_is_refused(harness, tmp_path, options):
    with pytest.raises(UsageError, match=r"cpu only|expected one of|expected at least 1 token"):
        harness.VaccLM(str(write_checkpoint(tmp_path / "model")), **options)

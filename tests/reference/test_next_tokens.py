"""Perplexity, KL and agreement beside a direct computation with all logits in float64."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from checkpoint_builders import write_checkpoint

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.models.config import FINAL_NORM, LM_HEAD
from vacc_deploy.progress import Progress
from vacc_deploy.reference import next_tokens as scoring
from vacc_deploy.reference.decoder import rms_norm
from vacc_deploy.reference.next_tokens import NextTokenScores, compare_next_tokens

ROWS, SEQ = 3, 30


def make_pair(tmp_path, *, tied=False, dtype=torch.float32):
    """Two checkpoints whose heads differ (by a factor, or not at all where they are tied)."""
    left, right = (
        Checkpoint.open(
            write_checkpoint(tmp_path / name, tied=tied, num_layers=1, dtype=dtype, scale=scale)
        )
        for name, scale in (("left", 3.0), ("right", 2.0))
    )
    return left, right


def make_states(seed=3, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, SEQ, 64, generator=generator)
    tokens = torch.randint(0, 272, (ROWS, SEQ), generator=generator)
    return hidden, hidden + noise * torch.randn(hidden.shape, generator=generator), tokens


def direct_scores(left, hidden_left, right, hidden_right, tokens, norm=rms_norm):
    """The same figures from full log-softmax tables."""
    tables = []
    for checkpoint, hidden in ((left, hidden_left), (right, hidden_right)):
        head = LM_HEAD if LM_HEAD in checkpoint.tensors else "model.embed_tokens.weight"
        inputs = norm(hidden, checkpoint.read(FINAL_NORM).float(), checkpoint.config.rms_norm_eps)
        logits = (inputs @ checkpoint.read(head).float().T).double()
        tables.append(F.log_softmax(logits[:, :-1].flatten(0, 1), dim=-1))
    targets = tokens[:, 1:].flatten()
    divergence = (tables[0].exp() * (tables[0] - tables[1])).sum(1)
    return NextTokenScores(
        num_tokens=len(targets),
        perplexity_float=F.nll_loss(tables[0], targets).exp().item(),
        perplexity_deployed=F.nll_loss(tables[1], targets).exp().item(),
        mean_kl=divergence.mean().item(),
        kl_standard_error=(divergence.std() / len(targets) ** 0.5).item(),
        max_kl=divergence.max().item(),
        top1=(tables[0].argmax(1) == tables[1].argmax(1)).double().mean().item(),
        token_kl=divergence,
    )


def assert_close(got, expected, rel=1e-6):
    for name in sorted(expected.to_dict().keys() - {"perplexity_change"}):
        assert getattr(got, name) == pytest.approx(getattr(expected, name), rel=rel, abs=1e-9), name
    # One token alone shows the float32 rounding of its logits, which their mean does not.
    torch.testing.assert_close(got.token_kl, expected.token_kl, rtol=100 * rel, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compare_next_tokens_equals_a_direct_computation(tmp_path, tied, dtype):
    left, right = make_pair(tmp_path, tied=tied, dtype=dtype)
    hidden_left, hidden_right, tokens = make_states()
    args = (left, hidden_left, right, hidden_right, tokens)
    got, expected = compare_next_tokens(*args), direct_scores(*args)
    assert_close(got, expected)
    assert got.num_tokens == ROWS * (SEQ - 1)
    assert got.mean_kl > 0.1 and 0.2 < got.top1 < 0.95
    change = got.perplexity_deployed / got.perplexity_float - 1
    assert got.to_dict()["perplexity_change"] == got.perplexity_change == change


def test_compare_next_tokens_gives_the_kl_of_every_prediction_beside_the_figures(tmp_path):
    left, right = make_pair(tmp_path)
    hidden_left, hidden_right, tokens = make_states()
    scores = compare_next_tokens(left, hidden_left, right, hidden_right, tokens)
    assert scores.token_kl.shape == (ROWS * (SEQ - 1),)
    assert scores.token_kl.mean().item() == scores.mean_kl
    assert scores.token_kl.max().item() == scores.max_kl
    assert "token_kl" not in scores.to_dict() and "token_kl" not in repr(scores)


def test_compare_next_tokens_near_models(tmp_path):
    left, _ = make_pair(tmp_path)
    hidden, near, tokens = make_states(noise=1e-3)
    got = compare_next_tokens(left, hidden, left, near, tokens)
    assert_close(got, direct_scores(left, hidden, left, near, tokens), rel=1e-4)
    assert 0 < got.mean_kl < 1e-4 and got.top1 > 0.9


@pytest.mark.parametrize("slice_bytes", [1, 4 * 64 * 17, 64 << 20])
def test_compare_next_tokens_identical_models_give_exactly_zero(tmp_path, monkeypatch, slice_bytes):
    monkeypatch.setattr(scoring, "_SLICE_BYTES", slice_bytes)
    left, _ = make_pair(tmp_path)
    hidden, _, tokens = make_states()
    scores = compare_next_tokens(left, hidden, left, hidden.clone(), tokens)
    assert (scores.mean_kl, scores.max_kl, scores.kl_standard_error) == (0.0, 0.0, 0.0)
    assert scores.top1 == 1.0
    assert scores.perplexity_float == scores.perplexity_deployed
    assert scores.perplexity_change == 0.0


@pytest.mark.parametrize("width", [1, 5, 100, 271, 272, 273])
@pytest.mark.parametrize("at_once", [10, 29, 87, 256])
def test_compare_next_tokens_slices_and_batches_do_not_matter(
    tmp_path, monkeypatch, width, at_once
):
    left, right = make_pair(tmp_path)
    hidden_left, hidden_right, tokens = make_states()
    args = (left, hidden_left, right, hidden_right, tokens)
    expected = direct_scores(*args)
    monkeypatch.setattr(scoring, "_SLICE_BYTES", 4 * 64 * width)
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", at_once)
    assert_close(compare_next_tokens(*args), expected)


def test_compare_next_tokens_first_and_last_token_of_the_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_SLICE_BYTES", 4 * 64 * 100)
    left, right = make_pair(tmp_path)
    hidden_left, hidden_right, _ = make_states()
    tokens = torch.tensor([[0, 271, 99, 100, 199, 200] * 5] * ROWS)
    args = (left, hidden_left, right, hidden_right, tokens)
    assert_close(compare_next_tokens(*args), direct_scores(*args))


def rounded_norm(hidden, weight, eps):
    return (rms_norm(hidden, weight, eps) * 256).round() / 256


def test_compare_next_tokens_large_logits_do_not_overflow(tmp_path, monkeypatch):
    """Numbers of few digits: no order of their float32 sums rounds, whatever the machine."""
    monkeypatch.setattr(scoring, "_SLICE_BYTES", 4 * 64 * 10)
    monkeypatch.setattr(scoring, "rms_norm", rounded_norm)
    left, _ = make_pair(tmp_path)
    plain = Checkpoint.read

    def read(self, name):
        return (plain(self, name) * 300).round() if name == LM_HEAD else plain(self, name)

    monkeypatch.setattr(Checkpoint, "read", read)
    monkeypatch.setattr(Checkpoint, "read_slice", lambda self, name, a, b: self.read(name)[a:b])
    hidden_left, hidden_right, tokens = make_states(noise=0.01)
    args = (left, hidden_left, left, hidden_right, tokens)
    # Sums below 2^16 in steps of 1 / 256: within the 24 binary digits of a float32.
    for hidden in (hidden_left, hidden_right):
        inputs = rounded_norm(hidden, left.read(FINAL_NORM).float(), left.config.rms_norm_eps)
        assert (inputs.abs() @ left.read(LM_HEAD).float().abs().T).max() < 2**16
    got = compare_next_tokens(*args)
    assert_close(got, direct_scores(*args, norm=rounded_norm))
    assert got.max_kl > 1 and math.isfinite(got.mean_kl)
    assert got.perplexity_float == math.inf


def test_compare_next_tokens_nan_states_are_none_in_json(tmp_path):
    left, _ = make_pair(tmp_path)
    hidden, _, tokens = make_states()
    broken = hidden.clone()
    broken[1, 4] = float("nan")
    scores = compare_next_tokens(left, hidden, left, broken, tokens)
    assert math.isnan(scores.mean_kl) and math.isnan(scores.perplexity_deployed)
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert values["mean_kl"] is None and values["perplexity_change"] is None
    assert values["perplexity_float"] == scores.perplexity_float


def test_compare_next_tokens_reads_the_head_in_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_SLICE_BYTES", 4 * 64 * 100)
    left, right = make_pair(tmp_path)
    plain, read = Checkpoint.read, []
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, name: read.append(name) or plain(self, name)
    )
    steps = []

    class Listener(Progress):
        def start(self, description, total, unit):
            steps.append((description, total, unit))

        def advance(self, amount=1, note=""):
            steps.append(amount)

    hidden_left, hidden_right, tokens = make_states()
    compare_next_tokens(left, hidden_left, right, hidden_right, tokens, Listener())
    assert set(read) == {FINAL_NORM}
    assert steps == [("Scoring", 272, "vocabulary rows"), 100, 100, 72]


def test_perplexity_overflow_is_infinity_and_none_in_json():
    scores = NextTokenScores(2, 3.0, scoring._perplexity(torch.tensor([1e4])), 1.0, 0.1, 2.0, 0.5)
    assert scores.perplexity_deployed == math.inf
    values = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert values["perplexity_deployed"] is None and values["perplexity_change"] is None

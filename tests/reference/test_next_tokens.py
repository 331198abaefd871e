"""Perplexity, KL and agreement beside a direct computation with all logits in float64."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from checkpoint_builders import write_checkpoint
from doubles import Recorder

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import FINAL_NORM, LM_HEAD
from vacc_deploy.reference.decoder import rms_norm
from vacc_deploy.reference.next_tokens import NextTokenScores, compare_next_tokens

ROWS, SEQ, HIDDEN = 3, 30, 64
ROW_BYTES = 4 * HIDDEN  # of the head's table in float32


def make_checkpoint(directory, **arguments):
    return Checkpoint.open(
        write_checkpoint(directory, num_layers=1, **{"dtype": torch.float32, **arguments})
    )


def make_pair(tmp_path, **arguments):
    """Two checkpoints whose heads differ (by a factor, or not at all where they are tied)."""
    left = make_checkpoint(tmp_path / "left", scale=3.0, **arguments)
    return left, make_checkpoint(tmp_path / "right", scale=2.0, **arguments)


def make_states(seed=3, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, SEQ, HIDDEN, generator=generator)
    tokens = torch.randint(0, 272, (ROWS, SEQ), generator=generator)
    return hidden, hidden + noise * torch.randn(hidden.shape, generator=generator), tokens


def direct_scores(left, hidden_left, right, hidden_right, tokens):
    """The same figures from full log-softmax tables."""
    tables = []
    for checkpoint, hidden in ((left, hidden_left), (right, hidden_right)):
        head = LM_HEAD if LM_HEAD in checkpoint.tensors else "model.embed_tokens.weight"
        inputs = rms_norm(
            hidden, checkpoint.read(FINAL_NORM).float(), checkpoint.config.rms_norm_eps
        )
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
    assert (got.token_kl.mean().item(), got.token_kl.max().item()) == (got.mean_kl, got.max_kl)
    assert "token_kl" not in got.to_dict() and "token_kl" not in repr(got)
    change = got.perplexity_deployed / got.perplexity_float - 1
    assert got.to_dict()["perplexity_change"] == got.perplexity_change == change


@pytest.mark.parametrize("slice_bytes", [1, 17 * ROW_BYTES, 64 << 20])
def test_compare_next_tokens_identical_models_give_exactly_zero(tmp_path, slice_bytes):
    left, _ = make_pair(tmp_path)
    hidden, near, tokens = make_states(noise=1e-3)
    args = (left, hidden, left, near, tokens)
    got = compare_next_tokens(*args, slice_bytes=slice_bytes)
    assert_close(got, direct_scores(*args), rel=1e-4)
    assert 0 < got.mean_kl < 1e-4 and got.top1 > 0.9
    scores = compare_next_tokens(
        left, hidden, left, hidden.clone(), tokens, slice_bytes=slice_bytes
    )
    assert (scores.mean_kl, scores.max_kl, scores.kl_standard_error) == (0.0, 0.0, 0.0)
    assert scores.top1 == 1.0
    assert scores.perplexity_float == scores.perplexity_deployed
    assert scores.perplexity_change == 0.0


@pytest.mark.parametrize("width", [1, 5, 100, 271, 272, 273])
@pytest.mark.parametrize("tokens_at_once", [10, 29, 87, 256])
def test_compare_next_tokens_slices_and_batches_do_not_matter(tmp_path, width, tokens_at_once):
    left, right = make_pair(tmp_path)
    hidden_left, hidden_right, tokens = make_states()
    tokens[:, :6] = torch.tensor([0, 271, 99, 100, 199, 200])  # both ends, and edges of slices
    args = (left, hidden_left, right, hidden_right, tokens)
    sizes = {"slice_bytes": width * ROW_BYTES, "tokens_at_once": tokens_at_once}
    assert_close(compare_next_tokens(*args, **sizes), direct_scores(*args))


def test_compare_next_tokens_large_logits_do_not_overflow(tmp_path):
    generator = torch.Generator().manual_seed(6)
    head = {"lm_head.weight": 300 * torch.randn(272, HIDDEN, generator=generator)}
    checkpoint = make_checkpoint(tmp_path / "m", extra_tensors=head)
    hidden_left, hidden_right, tokens = make_states(noise=0.01)
    args = (checkpoint, hidden_left, checkpoint, hidden_right, tokens)
    got, expected = compare_next_tokens(*args, slice_bytes=10 * ROW_BYTES), direct_scores(*args)
    # Logits of thousands have a float32 rounding of about 1e-3, which differs between the two.
    assert (got.mean_kl, got.max_kl, got.top1) == pytest.approx(
        (expected.mean_kl, expected.max_kl, expected.top1), rel=1e-2
    )
    assert got.max_kl > 1 and math.isfinite(got.mean_kl)
    assert got.perplexity_float == math.inf
    values = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert values["perplexity_float"] is None and values["perplexity_change"] is None


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


def test_compare_next_tokens_reads_the_head_in_slices(tmp_path):
    whole, recorder = [], Recorder()

    def watch(checkpoint):
        """Return the checkpoint, noting what is read as a whole."""
        return SimpleNamespace(
            config=checkpoint.config,
            read_slice=checkpoint.read_slice,
            read=lambda name: whole.append(name) or checkpoint.read(name),
        )

    left, right = map(watch, make_pair(tmp_path))
    hidden_left, hidden_right, tokens = make_states()
    args = (left, hidden_left, right, hidden_right, tokens)
    compare_next_tokens(*args, progress=recorder, slice_bytes=100 * ROW_BYTES)
    assert set(whole) == {FINAL_NORM}
    assert recorder.events[0] == ("start", "Scoring 272 vocabulary rows")
    assert [event[1] for event in recorder.events[1:-1]] == [100, 100, 72]

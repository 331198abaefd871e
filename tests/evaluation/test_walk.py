"""Prompts that share a beginning: the same hidden states as each prompt by itself."""

import pytest
import torch
from checkpoint_builders import write_checkpoint
from reference_logits import make_directory
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.evaluation.trees import Prompt, gather, plant_all
from vacc_deploy.evaluation.walk import Walk
from vacc_deploy.progress import Progress
from vacc_deploy.reference.next_tokens import score_targets

SHARED = tuple(range(20, 50))
PROMPTS = [
    Prompt((*SHARED, 60, 61, 62)),
    Prompt((*SHARED, 60, 61, 63, 64, 65), wanted=2),
    Prompt((*SHARED, 70)),
    Prompt((90, 91, 92), wanted=3),
    Prompt((90, 91), wanted=1),
]


def their_states(directory, prompts):
    """Return what transformers has behind the last layer, before the last norm."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    kept = []
    model.model.norm.register_forward_hook(lambda _, inputs, __: kept.append(inputs[0][0]))
    states, logits = [], []
    for prompt in prompts:
        with torch.inference_mode():
            logits.append(model(torch.tensor([prompt.ids])).logits[0, -prompt.wanted :])
        states.append(kept.pop()[-prompt.wanted :])
    return torch.cat(states), torch.cat(logits)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("sizes", [{}, {"tree_tokens": 36, "state_bytes": 1}])
def test_states_of_trees_equal_those_of_transformers(tmp_path, model_type, sizes):
    directory = write_checkpoint(tmp_path / "model", model_type=model_type)
    expected, logits = their_states(directory, PROMPTS)
    checkpoint = Checkpoint.open(directory)
    got = Walk(checkpoint, **sizes).states(PROMPTS)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
    targets = logits.argmax(1).where(torch.arange(len(got)) % 2 == 0, torch.tensor(7))
    scores, is_top = score_targets(checkpoint, got, targets)
    table = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(scores, table.gather(1, targets[:, None])[:, 0], atol=1e-4, rtol=0)
    assert is_top.tolist() == (logits.argmax(1) == targets).tolist()
    assert set(is_top.tolist()) == {True, False}


def test_states_of_qwen3_and_of_codes_equal_those_without_a_shared_trunk(tmp_path):
    """Norms of heads and every layout pass through the same layer."""
    checkpoint = Checkpoint.open(make_directory(tmp_path, "qwen3", "int8"))
    walk = Walk(checkpoint)
    alone = torch.cat([walk.states([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(walk.states(PROMPTS), alone, atol=2e-5, rtol=2e-5)


def test_rounded_inputs_change_the_states(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model"))
    plain, rounded = (Walk(checkpoint, kind).states(PROMPTS) for kind in ("float", "int8"))
    assert 0 < (plain - rounded).norm() / plain.norm() < 0.2


def test_a_shared_beginning_is_computed_once_and_never_the_wanted_positions():
    first, second, third = plant_all(PROMPTS, max_tokens=1000)
    assert (first.trunk, first.branches(), first.num_tokens) == (30, [3, 5, 1], 39)
    # All three positions of the fourth prompt are wanted, so the fifth cannot share them.
    assert (second.trunk, second.branches(), third.branches()) == (0, [3], [1])


def test_trees_keep_the_order_and_the_bounds():
    trees = plant_all(PROMPTS, max_tokens=38)
    assert [p for tree in trees for p in tree.prompts] == PROMPTS
    assert all(tree.num_tokens <= 38 for tree in trees)
    groups = list(gather(trees, 5))
    assert [tree for group in groups for tree in group] == trees
    assert all(len(group) == 1 or sum(t.num_tokens for t in group) <= 5 for group in groups)


def test_progress_has_as_many_steps_as_were_announced(tmp_path):
    class Steps(Progress):
        count = 0

        def advance(self, amount=1, note=""):
            self.count += amount

    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model"))
    walk, steps = Walk(checkpoint, state_bytes=1), Steps()
    walk.states(PROMPTS, steps)
    assert steps.count == walk.num_steps(PROMPTS) == 2 * len(walk.groups(PROMPTS)) > 2


def test_a_prompt_beyond_the_context_is_refused(tmp_path):
    directory = write_checkpoint(
        tmp_path / "model", config_overrides={"max_position_embeddings": 32}
    )
    with pytest.raises(CheckpointError, match="A prompt has 33 tokens, more than .* of 32 of"):
        Walk(Checkpoint.open(directory)).states([PROMPTS[0]])

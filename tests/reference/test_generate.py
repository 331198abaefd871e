"""Greedy answers: single and in a batch, where they end, and the ``generate`` command."""

import json
from types import SimpleNamespace

import pytest
import torch
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from reference_logits import decoder_logits, edit_json, make_directory
from tokenizer_builders import (
    ASSISTANT_ID,
    BOS_ID,
    EOS_ID,
    USER_ID,
    byte_ids,
)

from vacc_deploy.cli import cli
from vacc_deploy.errors import UsageError
from vacc_deploy.reference.generate import continue_prompts, eos_ids, generate
from vacc_deploy.reference.loader import load_model
from vacc_deploy.text.tokenizer import Tokenizer


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_continue_prompts_is_greedy(tmp_path, model_type, form):
    directory = make_directory(tmp_path, model_type, form)
    prompt = [BOS_ID, *byte_ids("hello there")]
    (answer,) = continue_prompts(
        load_model(directory), Tokenizer.from_dir(directory), [prompt], max_new_tokens=8
    )
    assert 1 <= len(answer) <= 8
    ids = list(prompt)
    for token in answer:
        assert decoder_logits(directory, torch.tensor([ids]))[0, -1].argmax() == token
        ids.append(token)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_continue_prompts_is_greedy_whatever_the_files_say(tmp_path, name):
    directory = make_directory(tmp_path, "llama", "float")
    tokenizer, prompt = Tokenizer.from_dir(directory), [BOS_ID, *byte_ids("hello there")]
    expected = continue_prompts(load_model(directory), tokenizer, [prompt], max_new_tokens=8)
    changes = {"repetition_penalty": 5.0, "num_beams": 3}
    if name == "config.json":  # read from there only where there is no file of its own
        (directory / "generation_config.json").unlink()
    else:
        changes |= {
            "suppress_tokens": expected[0][:1],
            "no_repeat_ngram_size": 1,
            "forced_eos_token_id": 3,
            "return_dict_in_generate": True,
            "num_return_sequences": 2,
            "max_length": 3,
            "do_sample": True,
        }
    edit_json(directory / name, **changes)
    model = load_model(directory)
    for _ in range(2):
        assert continue_prompts(model, tokenizer, [prompt], max_new_tokens=8) == expected


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_continue_prompts_batch_equals_single_runs(tmp_path, model_type, form):
    directory = make_directory(tmp_path, model_type, form)
    model, tokenizer = load_model(directory), Tokenizer.from_dir(directory)
    prompts = [[BOS_ID, *byte_ids("a" * n + "bcd")] for n in (1, 9, 30)]
    together = continue_prompts(model, tokenizer, prompts, max_new_tokens=10)
    single = [continue_prompts(model, tokenizer, [p], max_new_tokens=10)[0] for p in prompts]
    assert together == single
    assert any(len(set(answer)) > 1 for answer in together)


class FakeModel:
    """Answers with fixed rows, as ``generate`` pads them."""

    def __init__(self, rows, eos_token_id):
        self.rows = torch.tensor(rows)
        self.generation_config = SimpleNamespace(eos_token_id=eos_token_id)

    def generate(self, ids, *, attention_mask, generation_config):
        ends, pad = generation_config.eos_token_id, generation_config.pad_token_id
        self.seen = (ids.tolist(), attention_mask.tolist(), ends, pad)
        return torch.cat((ids, self.rows), dim=1)


def test_continue_prompts_stops_each_row_at_its_first_end_and_pads_left():
    model = FakeModel([[5, 0, 9]], None)  # a model without an end token
    tokenizer = SimpleNamespace(eos_id=None)
    assert continue_prompts(model, tokenizer, [[1]], max_new_tokens=3) == [[5, 0, 9]]
    assert model.seen[2:] == (None, 0)
    model = FakeModel([[5, 9, 9], [7, 8, 5], [5, 6, 7]], [9, 6])
    answers = continue_prompts(
        model, SimpleNamespace(eos_id=9), [[1], [1, 2, 3], [4, 4]], max_new_tokens=3
    )
    assert answers == [[5, 9], [7, 8, 5], [5, 6]]
    ids, mask, ends, pad = model.seen
    assert ids == [[6, 6, 1], [1, 2, 3], [6, 4, 4]]
    assert mask == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert (ends, pad) == ([6, 9], 6)


@pytest.mark.parametrize(
    ("stated", "own", "expected"), [(7, 7, [7]), ([3, 1], 2, [1, 2, 3]), (0, None, [0])]
)
def test_eos_ids_joins_both_sources(stated, own, expected):
    assert eos_ids(FakeModel([[0]], stated), SimpleNamespace(eos_id=own)) == expected


def make_ending(tmp_path, num_tokens):
    """A model that always answers "!" (id 0), or ends at once when ``num_tokens`` is 1."""
    head = torch.zeros(272, 64)
    head[EOS_ID if num_tokens == 1 else 0] = 1.0
    extra = {"lm_head.weight": head, "model.embed_tokens.weight": torch.ones(272, 64)}
    for layer in range(2):  # which leave the hidden states as they are
        extra[f"model.layers.{layer}.self_attn.o_proj.weight"] = torch.zeros(64, 64)
        extra[f"model.layers.{layer}.mlp.down_proj.weight"] = torch.zeros(64, 160)
    extra["model.norm.weight"] = torch.ones(64)
    return make_directory(tmp_path, extra_tensors={n: t.bfloat16() for n, t in extra.items()})


def test_generate_stopped_by_the_limit(tmp_path):
    directory = make_ending(tmp_path, 5)
    answer = generate(directory, prompt="hi there", max_new_tokens=5)
    assert (answer.text, answer.num_new_tokens, answer.finished) == ("!!!!!", 5, False)
    prompt = [BOS_ID, USER_ID, *byte_ids("hi there"), ASSISTANT_ID]
    assert answer.num_prompt_tokens == len(prompt)
    assert answer.to_text().startswith("!!!!!\n\n[5 tokens in ")
    assert answer.to_text().endswith(" tokens/s, stopped at --max-new-tokens]")


def test_generate_ended_by_the_model(tmp_path):
    answer = generate(make_ending(tmp_path, 1), prompt="hi", max_new_tokens=5)
    assert (answer.text, answer.num_new_tokens, answer.finished) == ("", 1, True)
    assert answer.to_text().endswith(" tokens/s]")


def test_generate_command_text_and_json(tmp_path):
    directory = make_ending(tmp_path, 5)
    arguments = ["generate", str(directory), "--prompt", "hi", "--max-new-tokens", "3"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "!!!\n\n[3 tokens in " in result.output
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    seconds = values.pop("seconds")
    assert seconds >= 0 and values == {
        "prompt": "hi",
        "text": "!!!",
        "num_prompt_tokens": 5,
        "num_new_tokens": 3,
        "finished": False,
    }


def test_generate_beyond_the_context_is_a_usage_error(tmp_path):
    directory = write_checkpoint(tmp_path / "m", config_overrides={"max_position_embeddings": 64})
    with pytest.raises(UsageError, match="more than the model's context of 64"):
        generate(directory, prompt="12+30=", max_new_tokens=64)

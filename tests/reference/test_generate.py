"""Answers: single and in a batch, where they end, drawn by a seed, and while they are written."""

from types import SimpleNamespace

import pytest
import torch
from checkpoint_builders import write_checkpoint
from ending_model import make_ending
from reference_logits import decoder_logits, edit_json, make_directory
from tokenizer_builders import (
    ASSISTANT_ID,
    BOS_ID,
    USER_ID,
    build_backend,
    byte_ids,
    tokenizer_config,
    write_tokenizer,
)
from tokenizers import normalizers

from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.reference.generate import Responder, continue_prompts, eos_ids, generate
from vacc_deploy.reference.loader import load_model
from vacc_deploy.reference.sampling import Sampling, SamplingOptions
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

    def generate(self, ids, *, attention_mask, generation_config, logits_processor):
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


def test_generate_stopped_by_the_limit(tmp_path):
    directory = make_ending(tmp_path, 5)
    answer = generate(directory, prompt="hi there", max_new_tokens=5)
    assert (answer.text, answer.num_new_tokens, answer.finished) == ("!!!!!", 5, False)
    prompt = [BOS_ID, USER_ID, *byte_ids("hi there"), ASSISTANT_ID]
    assert answer.num_prompt_tokens == len(prompt)
    assert answer.to_text().startswith("!!!!!\n\n[5 tokens in ")
    assert answer.to_text().endswith(" tokens/s, greedy, stopped at --max-new-tokens]")


def test_generate_ended_by_the_model(tmp_path):
    answer = generate(make_ending(tmp_path, 1), prompt="hi", max_new_tokens=5)
    assert (answer.text, answer.num_new_tokens, answer.finished) == ("", 1, True)
    assert answer.to_text().endswith(" tokens/s, greedy]")


def test_generate_beyond_the_context_is_a_usage_error(tmp_path):
    directory = write_checkpoint(tmp_path / "m", config_overrides={"max_position_embeddings": 64})
    with pytest.raises(UsageError, match="more than the model's context of 64"):
        generate(directory, prompt="12+30=", max_new_tokens=64)


def test_of_several_prompts_the_one_that_is_too_long_is_named(tmp_path):
    directory = write_checkpoint(tmp_path / "m", config_overrides={"max_position_embeddings": 64})
    responder = Responder(directory, max_new_tokens=32)
    responder.check_prompts(["a", "b"])
    with pytest.raises(UsageError, match="context of 64. This is prompt 2 of 2. Ask for fewer"):
        responder.check_prompts(["a", "b" * 40])


def test_a_prompt_with_an_id_that_the_model_does_not_know_is_an_error(tmp_path):
    # The tokenizer's marks of user and assistant are 258 and 259.
    directory = write_checkpoint(tmp_path, vocab_size=258)
    with pytest.raises(CheckpointError, match="gives the id 259, but the model has vocab_size 258"):
        generate(directory, prompt="hi", max_new_tokens=2)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{{ '' }}",
            r"tokenizer_config\.json cannot be used: its chat template writes nothing for",
        ),
        (
            "{{ messages[0]['content'] }}",
            r"tokenizer\.json cannot be used: it gives 0 tokens for a prompt, expected at least 1",
        ),
    ],
)
def test_a_prompt_without_a_token_names_the_file_that_is_at_fault(tmp_path, template, problem):
    directory, backend = write_checkpoint(tmp_path), build_backend()
    backend.normalizer = normalizers.Replace("hi", "")
    config = tokenizer_config(chat_template=template, add_bos_token=False)
    write_tokenizer(directory, backend, config)
    with pytest.raises(CheckpointError, match=problem):
        generate(directory, prompt="hi", max_new_tokens=2)


def test_a_directory_that_does_not_exist_is_named_before_its_tokenizer(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        generate(tmp_path / "nosuch", prompt="a")
    assert "tokenizer" not in str(caught.value) and "nosuch" in str(caught.value)


def test_one_seed_draws_the_same_tokens_and_another_seed_others(tmp_path):
    directory = make_directory(tmp_path, "llama", "float")
    options = [SamplingOptions(temperature=2.0, top_p=1.0, seed=seed) for seed in (1, 1, 2)]
    state = torch.random.get_rng_state()
    answers = [generate(directory, prompt="hi", max_new_tokens=12, options=o) for o in options]
    assert answers[0].text == answers[1].text != answers[2].text
    assert answers[0].sampling == Sampling(2.0, 1.0, 0, 1)
    assert (
        answers[0]
        .to_text()
        .endswith("temperature 2, top-p 1, seed 1, stopped at --max-new-tokens]")
    )
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_generation_config_decides_and_greedy_overrides_it(tmp_path):
    directory = make_directory(tmp_path, "llama", "float")
    greedy = generate(directory, prompt="hi", max_new_tokens=12)
    values = {"do_sample": True, "temperature": 3.0, "top_p": 1.0, "repetition_penalty": 1.5}
    edit_json(directory / "generation_config.json", **values)
    sampled = generate(directory, prompt="hi", max_new_tokens=12)
    assert sampled.sampling == Sampling(3.0, 1.0, 0, 0, 1.5) and sampled.text != greedy.text
    again = generate(
        directory, prompt="hi", max_new_tokens=12, options=SamplingOptions(greedy=True)
    )
    assert (again.text, again.sampling) == (greedy.text, None)


def test_the_repetition_penalty_of_the_generation_config_reaches_the_model(tmp_path):
    directory, texts = make_directory(tmp_path, "llama", "float"), []
    for penalty in (1.0, 10.0):
        values = {"do_sample": True, "top_k": 1, "repetition_penalty": penalty}
        edit_json(directory / "generation_config.json", **values)
        texts.append(generate(directory, prompt="hi", max_new_tokens=12).text)
    assert texts[0] != texts[1]


@pytest.mark.parametrize("form", ["prepared", "float", "int8"])
def test_the_streamed_pieces_are_the_answer(tmp_path, form):
    pieces = []
    answer = generate(
        make_directory(tmp_path, "qwen2", form),
        prompt="hello",
        max_new_tokens=12,
        on_text=pieces.append,
    )
    assert "".join(pieces) == answer.text and len(pieces) > 1


def test_an_answer_without_text_streams_nothing(tmp_path):
    pieces = []
    generate(make_ending(tmp_path, 1), prompt="hi", max_new_tokens=5, on_text=pieces.append)
    assert pieces == []


def test_the_history_is_rendered_without_the_thinking_of_earlier_turns(tmp_path):
    responder = Responder(make_ending(tmp_path, 5), max_new_tokens=2)
    thought = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<think>long</think>yes"},
    ]
    plain = [thought[0], {"role": "assistant", "content": "yes"}]
    counts = [
        responder.answer("so?", history=history).num_prompt_tokens
        for history in ((), thought, plain)
    ]
    assert counts[1] == counts[2] > counts[0]


def test_weights_without_probabilities_are_an_error(tmp_path):
    table = torch.full((272, 64), float("inf"), dtype=torch.bfloat16)
    directory = write_checkpoint(tmp_path / "m", extra_tensors={"model.embed_tokens.weight": table})
    for options in (SamplingOptions(temperature=1.0), SamplingOptions(greedy=True)):
        with pytest.raises(CheckpointError) as caught:
            generate(directory, prompt="hi", options=options)
        assert (
            f"{directory} gives probabilities that are infinite, undefined or all the same"
            in str(caught.value)
        )
        assert "model.embed_tokens.weight in model.safetensors: row 0" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("model.norm.weight", float("nan"), "row 0 holds NaN"),
        ("lm_head.weight", 0.0, "all of its values are zero"),
    ],
)
def test_a_model_that_knows_nothing_writes_no_answer(tmp_path, name, value, problem):
    # Greedily its first token would be written again and again.
    tensor = torch.full((64,) if "norm" in name else (272, 64), value, dtype=torch.bfloat16)
    directory = write_checkpoint(tmp_path / "m", extra_tensors={name: tensor})
    with pytest.raises(CheckpointError, match=f"cannot write an answer.*\n.*{name}.*{problem}"):
        generate(directory, prompt="hi")

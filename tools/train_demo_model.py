"""Train the small reasoning model that the package carries for ``vacc-deploy demo``.

The model is a Qwen2 of about 0.8 million parameters that adds two numbers digit by digit and
answers in the R1 style. Run from the repository root, with the package installed::

    python tools/train_demo_model.py --output vacc_deploy/data/demo_model

The run is deterministic for a given seed, thread count and torch version. It ends by measuring
the rounded bfloat16 weights on held-out sums, as they are and with int8 decoder linears, and
writes the checkpoint only when the bfloat16 weights are good enough.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from vacc_deploy.demo import task as demo_task
from vacc_deploy.demo.task import END_OF_SENTENCE, Problem

BEGIN_OF_SENTENCE = "<｜begin▁of▁sentence｜>"
SPECIAL_TOKENS = (END_OF_SENTENCE, "<｜User｜>", "<｜Assistant｜>", BEGIN_OF_SENTENCE)
THINK_TAGS = (demo_task.THINK_START, demo_task.THINK_END)
MERGED_TEXTS = (*demo_task.PLACES, " write", " carry", "\n\n")
CONTEXT_LENGTH, MAX_NEW_TOKENS = 512, 128
MIN_ACCURACY = 0.99
IGNORED_LABEL = -100
Example = tuple[list[int], list[int]]
Batch = tuple[torch.Tensor, torch.Tensor]
LEARNING_RATE, BATCH_SIZE, BATCHES_PER_POOL = 2e-3, 32, 16
HELD_OUT_COUNT, HELD_OUT_SEED = 1000, 1
# The split pattern of the R1-Distill-Qwen tokenizers; it keeps every digit apart.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The published R1 template drops the thinking of earlier assistant turns. This one keeps it, so
# that one rendering of a question and its response is a whole training sequence.
CHAT_TEMPLATE = (
    "{{ bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{ message['content'] }}"
    "{%- elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'] + eos_token }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{%- endif %}"
)


def byte_level_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary of all bytes and the merges of the few frequent words.

    Each of ``MERGED_TEXTS`` is built from left to right and becomes one token, but for `` write``:
    the ``te`` of ``tens`` merges first, so that it becomes `` wri`` and ``te``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for text in MERGED_TEXTS:
        symbols = to_symbols.pre_tokenize_str(text)[0][0]
        for length in range(1, len(symbols)):
            merged = symbols[: length + 1]
            if merged not in vocabulary:
                vocabulary[merged] = len(vocabulary)
                merges.append((symbols[:length], symbols[length]))
    return vocabulary, merges


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer, made like that of R1-Distill-Qwen: bytes, a few words, R1 tokens."""
    vocabulary, merges = byte_level_vocabulary()
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.normalizer = NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    # As in the published tokenizer, the think tags are added but not special: text keeps them.
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in THINK_TAGS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_SENTENCE} $A",
        pair=f"{BEGIN_OF_SENTENCE} $A {BEGIN_OF_SENTENCE}:1 $B:1",
        special_tokens=[(BEGIN_OF_SENTENCE, tokenizer.token_to_id(BEGIN_OF_SENTENCE))],
    )
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Return ``tokenizer_config.json`` in the published style."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BEGIN_OF_SENTENCE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_SENTENCE,
        "legacy": True,
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": END_OF_SENTENCE,
        "unk_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def model_config(tokenizer: Tokenizer) -> dict[str, object]:
    """Return ``config.json`` with the keys of the published R1-Distill-Qwen files."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id(BEGIN_OF_SENTENCE),
        "eos_token_id": tokenizer.token_to_id(END_OF_SENTENCE),
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": CONTEXT_LENGTH,
        "max_window_layers": 4,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "sliding_window": CONTEXT_LENGTH,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": math.ceil(tokenizer.get_vocab_size() / 16) * 16,
    }


def render(tokenizer: PreTrainedTokenizerFast, problem: Problem, *, response: bool) -> str:
    """Return the templated question, up to where the model goes on or with the response."""
    chat = [{"role": "user", "content": problem.question}]
    if response:
        chat.append({"role": "assistant", "content": problem.response})
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=not response)


def encode_example(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> Example:
    """Return the token ids of prompt and completion, and the labels of the completion only."""
    prompt, ids = (
        tokenizer.encode(render(tokenizer, problem, response=response), add_special_tokens=False)
        for response in (False, True)
    )
    if ids[: len(prompt)] != prompt:
        raise click.ClickException(f"{problem}: the prompt is not the start of the whole text.")
    return ids, [IGNORED_LABEL] * len(prompt) + ids[len(prompt) :]


def training_batches(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[Batch]:
    """Yield token ids and labels, padded on the right; each batch holds about equal lengths."""
    rng = random.Random(seed)
    pad, count = tokenizer.pad_token_id, BATCHES_PER_POOL * BATCH_SIZE
    for first_step in range(0, steps, BATCHES_PER_POOL):
        problems = demo_task.sample_problems(count, rng.getrandbits(32), held_out=False)
        pool = sorted((encode_example(tokenizer, p) for p in problems), key=lambda e: len(e[0]))
        starts = list(range(0, len(pool), BATCH_SIZE))
        rng.shuffle(starts)
        for start in starts[: steps - first_step]:
            batch = pool[start : start + BATCH_SIZE]
            width = max(len(ids) for ids, _ in batch)
            yield (
                torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch]),
                torch.tensor([row + [IGNORED_LABEL] * (width - len(row)) for _, row in batch]),
            )


def train(model: Qwen2ForCausalLM, batches: Iterator[Batch], steps: int) -> None:
    """Train in place with AdamW, a linear warm-up and a cosine decay to zero."""
    warmup = max(1, min(100, steps // 10))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    model.train()
    started = time.monotonic()
    for step, (ids, labels) in enumerate(batches, start=1):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - started
            click.echo(f"step {step}/{steps}  loss {loss.item():.5f}  {seconds:.0f} s")
    model.eval()


@torch.no_grad()
def exact_accuracy(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> float:
    """Return the share of problems that greedy decoding answers right, the end token included."""
    right = 0
    for start in range(0, len(problems), 250):
        batch = problems[start : start + 250]
        prompts = [render(tokenizer, problem, response=False) for problem in batch]
        inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        output = model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
        for problem, text in zip(batch, texts, strict=True):
            right += END_OF_SENTENCE in text and demo_task.parse_answer(text) == problem.answer
    return right / len(problems)


@torch.no_grad()
def round_decoder_linears_to_int8(model: Qwen2ForCausalLM) -> None:
    """Replace each decoder weight by its symmetric int8 value, one scale per output row."""
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            scale = module.weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            module.weight.copy_((module.weight / scale).round().clamp(-127, 127) * scale)


def write_checkpoint(
    output: Path, tokenizer: Tokenizer, config: dict[str, object], model: Qwen2ForCausalLM
) -> None:
    """Write the Hugging Face files; ``model`` must hold values that bfloat16 can represent."""
    settings = tokenizer_config()
    generation: dict[str, object] = {"_from_model_config": True, "do_sample": False}
    for key in ("bos_token_id", "eos_token_id", "transformers_version"):
        generation[key] = config[key]
    output.mkdir(parents=True, exist_ok=True)
    files = {"config": config, "generation_config": generation, "tokenizer_config": settings}
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (output / f"{name}.json").write_text(text, encoding="utf-8")
    tokenizer.save(str(output / "tokenizer.json"))
    state = model.state_dict()
    del state["lm_head.weight"]  # The embedding again: the two are tied.
    tensors = {name: value.to(torch.bfloat16) for name, value in state.items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--steps", type=click.IntRange(1), default=2800, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(output: Path, steps: int, seed: int) -> None:
    """Train the demo model, measure it on held-out sums and write it to OUTPUT."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    raw_tokenizer = build_tokenizer()
    settings = tokenizer_config()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw_tokenizer,
        padding_side="left",
        **{key: settings[key] for key in ("bos_token", "eos_token", "pad_token", "chat_template")},
    )
    config = model_config(raw_tokenizer)
    model = Qwen2ForCausalLM(Qwen2Config(**config)).float()
    click.echo(f"{sum(p.numel() for p in model.parameters())} parameters")
    train(model, training_batches(tokenizer, steps, seed), steps)
    model.to(torch.bfloat16).float()
    rounded = copy.deepcopy(model)
    problems = demo_task.sample_problems(HELD_OUT_COUNT, HELD_OUT_SEED, held_out=True)
    accuracy = exact_accuracy(model, tokenizer, problems)
    round_decoder_linears_to_int8(rounded)
    int8_accuracy = exact_accuracy(rounded, tokenizer, problems)
    click.echo(f"exact answers of {HELD_OUT_COUNT} held-out sums, greedy decoding")
    click.echo(f"  bfloat16 weights      {accuracy:.2%}")
    click.echo(f"  int8 decoder linears  {int8_accuracy:.2%}")
    if accuracy < MIN_ACCURACY:
        raise click.ClickException(f"Below {MIN_ACCURACY:.0%}: nothing was written. Train longer.")
    write_checkpoint(output, raw_tokenizer, config, model)
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()

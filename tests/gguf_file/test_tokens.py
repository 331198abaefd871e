"""The tokenizer as llama.cpp reads it: pre-tokenizer, tokens, types, merges, ids."""

import json

import pytest
import tokenizers
from checkpoint_builders import build_config, write_json
from token_fixtures import train_backend
from tokenizer_builders import BOS, EOS, build_backend, tokenizer_config, write_tokenizer
from tokenizers import AddedToken, Regex, pre_tokenizers

from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.gguf_file.key_values import token_values
from vacc_deploy.gguf_file.pre_tokenizer import find_pre_tokenizer
from vacc_deploy.gguf_file.tokens import read_tokens
from vacc_deploy.models.parse import parse_config

# As they stand in the published files.
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(**changes):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False} | changes)


def split(pattern, behavior="isolated", invert=False):
    cut = pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)
    return pre_tokenizers.Sequence([cut, byte_level()])


def document(pre_tokenizer, **changes):
    backend = train_backend()
    backend.pre_tokenizer = pre_tokenizer
    values = json.loads(backend.to_str())
    values["model"] |= changes.pop("model", {})
    return values | changes


NFC = {"normalizer": {"type": "NFC"}}
WHOLE = {"model": {"ignore_merges": True}}
DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)]
)


@pytest.mark.parametrize(
    ("values", "tokens", "name"),
    [
        (document(split(QWEN), **NFC), {"<|endoftext|>": 0}, "qwen2"),
        (document(split(QWEN)), {BOS: 1}, "deepseek-r1-qwen"),
        (document(split(LLAMA), **WHOLE), {BOS: 1}, "llama-bpe"),
        (document(split(LLAMA, "removed", invert=True), **WHOLE), {}, "llama-bpe"),
        (document(DIGITS), {}, "smollm"),
        (document(byte_level(use_regex=True)), {}, "gpt-2"),
    ],
    ids=["qwen2", "r1-qwen", "llama", "llama-removed", "smollm", "gpt-2"],
)
def test_the_families_have_the_names_that_llama_cpp_s_converter_writes(values, tokens, name):
    assert find_pre_tokenizer(values, tokens) == name


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (document(split(LLAMA)), "its ignore_merges is False"),
        (document(split(QWEN), **WHOLE), "its ignore_merges is True"),
        (document(split(QWEN, "contiguous")), "its pre_tokenizer does: Split"),
        (document(split(QWEN.replace("'s|", ""))), "its pre_tokenizer does: (?i:'t|"),
        (document(byte_level()), "its pre_tokenizer does: bytes"),
        (document(byte_level(add_prefix_space=True)), "'add_prefix_space': True"),
        (document(pre_tokenizers.Metaspace()), "Metaspace"),
        ({**document(split(QWEN)), "pre_tokenizer": None}, "its pre_tokenizer does: nothing"),
        (document(split(QWEN), normalizer={"type": "NFKC"}), "its normalizer is 'NFKC'"),
        (document(split(QWEN), model={"type": "Unigram"}), "its model is 'Unigram'"),
        (document(split(QWEN), model={"continuing_subword_prefix": "##"}), "marks in front of"),
    ],
)
def test_any_other_rule_is_refused_with_the_way_out(values, what):
    with pytest.raises(UnsupportedModelError) as caught:
        find_pre_tokenizer(values, {})
    assert what in str(caught.value) and str(caught.value).endswith("give --gguf-pre NAME.")
    assert len(str(caught.value)) < 1500


def write(directory, backend, *, vocab_size=440, model_type="qwen2", raw=None, **changes):
    config = build_config(model_type=model_type, vocab_size=vocab_size, overrides=raw)
    write_tokenizer(directory, backend, tokenizer_config(**changes))
    write_json(directory / "config.json", config)
    return directory, parse_config(config, where="config.json")


def trained():
    backend = train_backend(300)
    backend.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("<|tool|>")])
    return backend


def test_tokens_types_and_ids_literally(tmp_path):
    backend = trained()
    count = backend.get_vocab_size()
    assert count == 304
    directory, config = write(tmp_path, backend, vocab_size=310, add_bos_token=True)
    got = read_tokens(directory, config)
    assert len(got.tokens) == len(got.types) == 310
    assert got.tokens[300:] == (
        *(BOS, EOS, "<think>", "<|tool|>"),
        *(f"[PAD{number}]" for number in range(304, 310)),
    )
    # Control tokens by their flag or their look, one of the user's, and padding.
    assert got.types[299:] == (1, 3, 3, 4, 3, 5, 5, 5, 5, 5, 5)
    assert all(got.tokens[i] == backend.id_to_token(i) for i in range(304))
    merges = json.loads(backend.to_str())["model"]["merges"]
    assert got.merges == tuple(" ".join(m) if isinstance(m, list) else m for m in merges)
    assert got.special == {"bos": 300, "eos": 301} and got.adds_bos is True
    assert got.adds_space is None and got.template.startswith("{% if not add_generation_prompt")


def test_ids_of_the_configuration_fill_in_for_roles_without_a_token(tmp_path):
    raw = {"pad_token_id": 7, "bos_token_id": 1, "eos_token_id": [2, 3]}
    directory, config = write(
        tmp_path, trained(), raw=raw, bos_token=None, add_bos_token=False, add_prefix_space=False
    )
    got = read_tokens(directory, config)
    assert got.special == {"bos": 1, "eos": 301, "pad": 7} and got.adds_bos is False
    directory, config = write(
        tmp_path, trained(), model_type="llama", raw={"rope_scaling": None}, add_prefix_space=False
    )
    assert read_tokens(directory, config).adds_space is False


def test_a_chat_template_that_fails_is_left_out_and_told(tmp_path):
    directory, config = write(tmp_path, trained(), chat_template="{% if %}")
    got = read_tokens(directory, config)
    assert got.template == "" and got.template_problem.startswith("The chat template in ")
    assert " does not compile (line 1): " in got.template_problem
    assert "tokenizer.chat_template" not in token_values(got)
    directory, config = write(tmp_path, trained())
    got = read_tokens(directory, config)
    assert got.template_problem == "" and "tokenizer.chat_template" in token_values(got)


def test_a_given_name_counts_and_refusals_name_the_file(tmp_path):
    backend = trained()
    backend.pre_tokenizer = byte_level()
    directory, config = write(tmp_path, backend)
    with pytest.raises(UnsupportedModelError, match="--gguf-pre NAME"):
        read_tokens(directory, config)
    assert read_tokens(directory, config, "my-pre").pre == "my-pre"
    directory, config = write(tmp_path, trained(), vocab_size=302)
    with pytest.raises(CheckpointError, match=r"gives '<think>' the id 302, but the model has 302"):
        read_tokens(directory, config)
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(build_backend().get_vocab(), []))
    bare.pre_tokenizer = byte_level(use_regex=True)
    directory, config = write(tmp_path, bare)
    with pytest.raises(UnsupportedModelError, match="has no merges"):
        read_tokens(directory, config)
    directory, config = write(tmp_path, trained(), chat_template=[{"name": "x", "template": "y"}])
    with pytest.raises(CheckpointError, match="no entry named default"):
        read_tokens(directory, config)

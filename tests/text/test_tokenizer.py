import json
import subprocess
import sys

import pytest
import tokenizers
import transformers
from tokenizer_builders import (
    ASSISTANT,
    ASSISTANT_ID,
    BOS,
    BOS_ID,
    EOS,
    EOS_ID,
    R1_TEMPLATE,
    USER,
    USER_ID,
    build_backend,
    byte_ids,
    tokenizer_config,
    write_tokenizer,
)

from vacc_deploy.bounds import TOKENIZER_BYTES
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.text.tokenizer import Tokenizer

CHAT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>hm</think>4"},
    {"role": "user", "content": "Danke schön, 谢谢"},
]


def load(tmp_path, backend=None, **changes):
    return Tokenizer.from_dir(write_tokenizer(tmp_path, backend, tokenizer_config(**changes)))


def load_template(tmp_path, template, **changes):
    return load(tmp_path, chat_template=template, **changes)


def render(tokenizer, *, add_generation_prompt=False):
    return tokenizer.render_chat(CHAT, add_generation_prompt=add_generation_prompt)


def test_attributes_come_from_both_files(tmp_path):
    tokenizer = load(tmp_path)
    assert (tokenizer.bos_token, tokenizer.bos_id) == (BOS, BOS_ID)
    assert (tokenizer.eos_token, tokenizer.eos_id) == (EOS, EOS_ID)
    assert tokenizer.adds_bos
    assert tokenizer.has_chat_template


def test_encode_gives_literal_ids_and_adds_one_bos_only_when_asked(tmp_path):
    tokenizer = load(tmp_path)
    assert tokenizer.encode("Aa!", add_bos=False) == [32, 64, 0]
    assert tokenizer.encode("Aa!", add_bos=True) == [BOS_ID, 32, 64, 0]
    assert tokenizer.encode(f"{BOS}Aa!", add_bos=True) == [BOS_ID, 32, 64, 0]
    assert tokenizer.encode(f"{BOS}Aa!", add_bos=False) == [BOS_ID, 32, 64, 0]
    assert tokenizer.encode("", add_bos=True) == [BOS_ID]
    assert tokenizer.encode("", add_bos=False) == []
    text = f"{USER}a{ASSISTANT}"
    assert tokenizer.encode(text, add_bos=False) == [USER_ID, 64, ASSISTANT_ID]


def test_decode_returns_the_text_with_or_without_special_tokens(tmp_path):
    tokenizer = load(tmp_path)
    text = "naïve 数学 🙂\r\n\ttab"
    ids = tokenizer.encode(text, add_bos=True)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(ids, skip_special_tokens=False) == BOS + text
    assert tokenizer.decode(byte_ids("ok"), skip_special_tokens=True) == "ok"


def test_saved_truncation_and_padding_are_switched_off(tmp_path):
    backend = build_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=64, pad_id=EOS_ID, pad_token=EOS)
    before = write_tokenizer(tmp_path, backend).joinpath("tokenizer.json").read_bytes()
    assert json.loads(before)["truncation"]["max_length"] == 4
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.encode("a" * 100, add_bos=True) == [BOS_ID] + [64] * 100
    assert tokenizer.encode("a", add_bos=False) == [64]
    assert len(tokenizer.encode_chat(CHAT, add_generation_prompt=True)) > 30
    assert (tmp_path / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "probed", "expected"),
    [(True, False, True), (False, True, False), (None, True, True), (None, False, False)],
)
def test_adds_bos_is_the_setting_or_else_what_the_post_processor_does(
    tmp_path, setting, probed, expected
):
    backend = build_backend(post_processor_bos=probed)
    assert load(tmp_path, backend, add_bos_token=setting).adds_bos is expected


def test_without_tokenizer_config_the_post_processor_tells_the_bos(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert (tokenizer.bos_token, tokenizer.bos_id, tokenizer.adds_bos) == (BOS, BOS_ID, True)
    assert (tokenizer.eos_token, tokenizer.eos_id) == (None, None)
    assert not tokenizer.has_chat_template


def test_tokenizer_without_bos_refuses_to_add_one(tmp_path):
    backend = build_backend(post_processor_bos=False)
    tokenizer = load(tmp_path, backend, bos_token=None, add_bos_token=False)
    assert tokenizer.bos_id is None
    assert tokenizer.encode("a", add_bos=False) == [64]
    with pytest.raises(CheckpointError, match="has no BOS token"):
        tokenizer.encode("a", add_bos=True)


def test_encode_chat_has_exactly_one_bos_and_literal_ids(tmp_path):
    tokenizer = load(tmp_path)
    ids = tokenizer.encode_chat(CHAT[:2], add_generation_prompt=False)
    question = [BOS_ID, USER_ID, *byte_ids("2+2?")]
    assert ids == [*question, ASSISTANT_ID, *byte_ids("4"), EOS_ID]
    prompt = tokenizer.encode_chat(CHAT[:1], add_generation_prompt=True)
    assert prompt == [*question, ASSISTANT_ID]


@pytest.mark.parametrize(("adds_bos", "expected"), [(True, 1), (False, 0)])
def test_encode_chat_adds_the_bos_that_a_template_leaves_out(tmp_path, adds_bos, expected):
    template = R1_TEMPLATE.replace("{{bos_token}}", "")
    tokenizer = load_template(tmp_path, template, add_bos_token=adds_bos)
    ids = tokenizer.encode_chat(CHAT, add_generation_prompt=True)
    assert ids.count(BOS_ID) == expected
    assert ids[:expected] == [BOS_ID] * expected
    tokenizer = load_template(tmp_path, "\n " + R1_TEMPLATE, add_bos_token=adds_bos)
    assert tokenizer.encode_chat(CHAT, add_generation_prompt=True).count(BOS_ID) == 1


@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_ids_equal_those_of_transformers(tmp_path, add_generation_prompt):
    tokenizer = load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "Where is\tthe 数学 book?\n\n1234  "
    assert tokenizer.encode(text, add_bos=tokenizer.adds_bos) == theirs(text).input_ids
    options = {"add_generation_prompt": add_generation_prompt}
    assert render(tokenizer, **options) == theirs.apply_chat_template(
        CHAT, tokenize=False, **options
    )
    assert tokenizer.encode_chat(CHAT, **options) == theirs.apply_chat_template(
        CHAT, tokenize=True, return_dict=False, **options
    )


def test_missing_tokenizer_json_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="tokenizer.json is missing. Download it"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match="only tokenizer.model.*save_pretrained"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", [b" ", b"{", b"[]", b"\xff\xfe\x00", b"[" * 5000, b"null"])
def test_damaged_tokenizer_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        CheckpointError, match="tokenizer.json cannot be used: it (is not|has|holds)"
    ):
        Tokenizer.from_dir(tmp_path)


def test_empty_tokenizer_json_is_named_so(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(CheckpointError, match="tokenizer.json cannot be used: it is empty"):
        Tokenizer.from_dir(tmp_path)


def test_oversized_tokenizer_json_is_refused(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(TOKENIZER_BYTES + 1)  # sparse: takes no space
    with pytest.raises(CheckpointError, match="holds more than 67,108,864 bytes"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"eos_token": {"text": EOS}}, "eos_token is .*expected a token"),
        ({"eos_token": 7}, "eos_token is 7, expected a token"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes', expected true or false"),
    ],
)
def test_contradicting_tokenizer_config_is_refused(tmp_path, changes, text):
    with pytest.raises(CheckpointError, match=text):
        load(tmp_path, **changes)


def test_add_bos_without_a_bos_puts_none_and_says_so(tmp_path):
    tokenizer = load(tmp_path, build_backend(post_processor_bos=False), bos_token=None)
    assert (tokenizer.adds_bos, tokenizer.bos_id) == (False, None)
    assert tokenizer.notes == (
        "add_bos_token in tokenizer_config.json is true, but bos_token names no token: no BOS is "
        "put in front of a text, as in transformers.",
    )
    # One that the post-processor puts is a BOS.
    tokenizer = load(tmp_path, bos_token=None)
    assert (tokenizer.adds_bos, tokenizer.notes) == (True, ())


def test_tokenizer_config_must_be_an_object(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]", "utf-8")
    with pytest.raises(CheckpointError, match="holds list, expected a JSON object"):
        Tokenizer.from_dir(tmp_path)


def test_text_with_half_a_surrogate_pair_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="not valid Unicode"):
        load(tmp_path).encode("a\ud800", add_bos=False)


def test_module_imports_neither_torch_nor_transformers():
    code = (
        "import sys, vacc_deploy.text.tokenizer, vacc_deploy.calibration.rows\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- a library that raises bare exceptions ----------------------------------------------------


def word_level(vocab):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return backend


def test_tokenizer_without_an_unknown_token_is_a_checkpoint_error(tmp_path):
    config = tokenizer_config(bos_token=None, eos_token=None, add_bos_token=None)
    directory = write_tokenizer(tmp_path / "probe", word_level({"b": 0}), config)
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be used: .* Missing \[UNK\]"):
        Tokenizer.from_dir(directory)
    directory = write_tokenizer(tmp_path / "encode", word_level({"a": 0}), config)
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode("a a", add_bos=False) == [0, 0]
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be used: .* Missing \[UNK\]"):
        tokenizer.encode("a b", add_bos=False)

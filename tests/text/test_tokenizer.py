import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

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
from vacc_deploy.text import chat_template
from vacc_deploy.text.chat_template import MAX_TEMPLATE_CHARS
from vacc_deploy.text.token_files import SettledTokens
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


@pytest.mark.parametrize(
    "template",
    [
        "  {% for message in messages %}\n  {% if loop.index0 == 1 %}{% continue %}{% endif %}\n"
        "{{ message | tojson }}\n  {% endfor %}\nend\n",
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}"
        "{{ m.role }}:{{ m['content'] | trim }}{{ eos_token }}{% endfor %}{{ '-' * 3 }}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = m.role %}"
        "{{ x }}{% endgeneration %}{{ x }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ bos_token }}{% if tools is none %}no tools{% endif %}{{ pad_token }}"
        "{{ messages | tojson(indent=2) }}{{ '<é&>' | tojson }}",
    ],
    ids=["continue-tojson", "break-repeat", "generation-block", "variables"],
)
def test_rendering_equals_that_of_transformers(tmp_path, template):
    tokenizer = load_template(tmp_path, template)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert render(tokenizer) == theirs.apply_chat_template(CHAT, tokenize=False)


def test_template_date_is_the_same_every_day(tmp_path):
    tokenizer = load_template(tmp_path, "{{ strftime_now('%d %b %Y') }}")
    assert render(tokenizer) == "26 Jul 2024"


def test_template_may_come_from_a_list_or_from_files_or_be_missing(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert render(load_template(tmp_path / "list", named)) == "D"
    named = {"tool_use": "T", "default": "D"}
    assert render(load_template(tmp_path / "object", named)) == "D"
    write_tokenizer(tmp_path / "json", config=tokenizer_config(chat_template=None))
    (tmp_path / "json/chat_template.json").write_text('{"chat_template": "J"}', "utf-8")
    assert render(Tokenizer.from_dir(tmp_path / "json")) == "J"
    tokenizer = load_template(tmp_path / "none", None)
    with pytest.raises(CheckpointError, match="has no chat template: neither chat_template.jinja"):
        render(tokenizer)
    # transformers 5 lets the .jinja file win over tokenizer_config.json.
    write_tokenizer(tmp_path / "jinja")
    (tmp_path / "jinja/chat_template.jinja").write_text("F", "utf-8")
    # transformers 5 saves templates for other purposes in a folder.
    (tmp_path / "jinja/additional_chat_templates").mkdir()
    (tmp_path / "jinja/additional_chat_templates/rag.jinja").write_text("{% if %}", "utf-8")
    assert render(Tokenizer.from_dir(tmp_path / "jinja")) == "F"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ ''.__class__.__base__ }}{{ raise_exception.__globals__['json'] }}", "SecurityError"),
        ("{{ strftime_now.__self__.__class__.__init__.__globals__ }}", "SecurityError"),
        ("{% set _ = messages.append({}) %}", "SecurityError"),
        ("{{ messages.pop() }}", "SecurityError"),
        ("{{ 'x' * 999999999999 }}", "SecurityError: a text or list of more than"),
        ("{{ 999999999999 * [1] }}", "SecurityError: a text or list of more than"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", r"SecurityError: the operator \*\*"),
        ("{% for i in range(999999999) %}x{% endfor %}", "OverflowError"),
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[9].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_hostile_or_failing_template_is_an_error_that_names_the_file(tmp_path, template, text):
    tokenizer = load_template(tmp_path, template)
    with pytest.raises(CheckpointError, match=text) as caught:
        render(tokenizer)
    assert str(tmp_path / "tokenizer_config.json") in str(caught.value)
    assert "cannot render" in str(caught.value)


def test_template_that_writes_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 10_000)
    loops = "{% for i in range(9999) %}" * 3 + "xxxx" + "{% endfor %}" * 3
    with pytest.raises(CheckpointError, match="more than 10,000 characters written"):
        render(load_template(tmp_path, loops))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if %}", r"does not compile \(line 1\): TemplateSyntaxError"),
        ("\n{{ a ", r"does not compile \(line 2\)"),
        ("{% for x in y %}" * 30 + "{% endfor %}" * 30, "does not compile"),
        ("x" * (MAX_TEMPLATE_CHARS + 1), "holds 262,145 characters, expected at most"),
        (17, "chat_template is int, expected text"),
        ([{"name": "rag", "template": "x"}], r"no entry named default \(got: rag\)"),
        ([{"name": "default"}], "chat_template is NoneType, expected text"),
    ],
)
def test_unusable_template_is_an_error_where_it_is_used_only(tmp_path, template, text):
    tokenizer = load_template(tmp_path, template)
    assert tokenizer.has_chat_template
    assert tokenizer.encode("Aa!", add_bos=True) == [BOS_ID, 32, 64, 0]
    for use in (partial(render, tokenizer), tokenizer.answer_end_id):
        with pytest.raises(CheckpointError, match=text) as caught:
            use()
        assert "tokenizer_config.json" in str(caught.value)


def test_template_file_must_be_short_utf8(tmp_path):
    write_tokenizer(tmp_path)
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"\xff\xfe{{ x }}")
    with pytest.raises(CheckpointError, match="jinja cannot be used: it is not UTF-8"):
        render(Tokenizer.from_dir(tmp_path))
    path.write_bytes("数".encode() * (2 * MAX_TEMPLATE_CHARS))
    with pytest.raises(CheckpointError, match="holds more than 1,048,576 bytes"):
        render(Tokenizer.from_dir(tmp_path))


def test_missing_tokenizer_json_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="tokenizer.json is missing. Download it"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match="only tokenizer.model.*save_pretrained"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", [b" ", b"{", b"[]", b"\xff\xfe\x00", b"[" * 5000, b"null"])
def test_damaged_tokenizer_json_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer.json cannot be used: the tokenizers"):
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


class PanicException(BaseException):
    """As pyo3 names it."""


def failing_backend(raised):
    """Return a stand-in of the library's tokenizer that fails at the first text."""

    def encode(*_, **__):
        raise raised

    settings = {"no_truncation": lambda: None, "no_padding": lambda: None}
    return SimpleNamespace(get_vocab_size=lambda **_: 1, encode=encode, **settings)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (PanicException("index out of bounds"), CheckpointError),
        (Exception("odd"), CheckpointError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(2), SystemExit),
        (AttributeError("a mistake of ours"), AttributeError),
    ],
)
def test_failures_of_the_library_are_converted_and_no_others(tmp_path, raised, seen):
    with pytest.raises(seen):
        settled = SettledTokens(failing_backend(raised), {}, {}, None, ())
        Tokenizer(settled, directory=tmp_path, template=None)


# ---- templates that grow ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "step"),
    [("'01'", "n.s + n.s"), ("'01'", "n.s ~ n.s ~ 1"), ("'01'", "n.s * 2"), ("[1]", "n.s + n.s")],
)
def test_template_that_doubles_is_stopped(tmp_path, monkeypatch, start, step):
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 1000)
    template = "{% set n = namespace(s=" + start + ") %}{% for i in range(28) %}"
    template += "{% set n.s = " + step + " %}{% endfor %}done"
    with pytest.raises(CheckpointError, match="a text or list of more than 1,000 items"):
        render(load_template(tmp_path, template))


def test_template_operators_still_work(tmp_path):
    template = "{{ 'a' + 'b' }}{{ 1 + 2 }}{{ 'x' ~ 1 ~ none }}{{ [1] + [2] }}{{ 3 * 'z' }}"
    assert render(load_template(tmp_path, template)) == "ab3x1None[1, 2]zzz"

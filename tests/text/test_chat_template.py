from functools import partial

import pytest
import transformers
from tokenizer_builders import (
    BOS_ID,
    QWEN3_TEMPLATE,
    R1_0528_TEMPLATE,
    tokenizer_config,
    write_tokenizer,
)

from vacc_deploy.bounds import TEMPLATE_CHARACTERS
from vacc_deploy.errors import CheckpointError
from vacc_deploy.text.tokenizer import Tokenizer

CHAT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>hm</think>4"},
    {"role": "user", "content": "Danke schön, 谢谢"},
]


def load_template(tmp_path, template, **changes):
    config = tokenizer_config(chat_template=template, **changes)
    return Tokenizer.from_dir(write_tokenizer(tmp_path, config=config))


def render(tokenizer):
    return tokenizer.render_chat(CHAT, add_generation_prompt=False)


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


TURNS = {
    "chat": CHAT,
    "system": [{"role": "system", "content": "Be brief."}, *CHAT],
    "two systems": [{"role": "system", "content": text} for text in "ab"] + CHAT[:1],
    "after an answer": CHAT[:2],
    "nothing between the marks": [
        CHAT[0],
        {"role": "assistant", "content": "<think>\n\n</think>\n\n4"},
        CHAT[2],
    ],
}
TOOLS = [
    CHAT[0],
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"é": [1]}}]},
    {"role": "tool", "content": "4"},
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "9", "reasoning_content": "\nsum\n"},
]


@pytest.mark.parametrize("template", [QWEN3_TEMPLATE, R1_0528_TEMPLATE], ids=["qwen3", "r1-0528"])
def test_templates_of_qwen3_and_r1_0528_render_as_in_transformers(tmp_path, template):
    tokenizer = load_template(tmp_path, template)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    turns = TURNS | ({"tools": TOOLS} if template is QWEN3_TEMPLATE else {})
    for name, messages in turns.items():
        for prompt in (True, False):
            expected = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            assert tokenizer.render_chat(messages, add_generation_prompt=prompt) == expected, name
    # Nobody turns the thoughts of Qwen3 off here: the opening is left to the model.
    rendered = tokenizer.render_chat(CHAT, add_generation_prompt=True)
    assert rendered.rstrip("\n").endswith(("<|im_start|>assistant", "<｜Assistant｜>"))
    assert "hm" not in rendered


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
        (
            "{{ messages.__class__.__mro__[1].__subclasses__() }}",
            "it asks for what no template gets",
        ),
        (
            "{{ ''.__class__.__base__ }}{{ raise_exception.__globals__['json'] }}",
            "it asks for what no template gets",
        ),
        (
            "{{ strftime_now.__self__.__class__.__init__.__globals__ }}",
            "it asks for what no template gets",
        ),
        ("{% set _ = messages.append({}) %}", "it asks for what no template gets"),
        ("{{ messages.pop() }}", "it asks for what no template gets"),
        ("{% for i in range(999999999) %}x{% endfor %}", "an operation fails: .*OverflowError"),
        (
            "{{ raise_exception('roles must alternate') }}",
            "it refuses the conversation: roles must alternate",
        ),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[9].content }}", "it uses a value that is not there"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    ],
)
def test_hostile_or_failing_template_is_an_error_that_names_the_file(tmp_path, template, text):
    tokenizer = load_template(tmp_path, template)
    with pytest.raises(CheckpointError, match=text) as caught:
        render(tokenizer)
    assert str(tmp_path / "tokenizer_config.json") in str(caught.value)
    assert "cannot render" in str(caught.value)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if %}", r"does not compile \(line 1\): jinja says: "),
        ("\n{{ a ", r"does not compile \(line 2\)"),
        ("{% for x in y %}" * 30 + "{% endfor %}" * 30, "does not compile"),
        ("x" * (TEMPLATE_CHARACTERS + 1), "holds 262,145 characters, expected at most"),
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
    path.write_bytes("数".encode() * (2 * TEMPLATE_CHARACTERS))
    with pytest.raises(CheckpointError, match="holds more than 1,048,576 bytes"):
        render(Tokenizer.from_dir(tmp_path))

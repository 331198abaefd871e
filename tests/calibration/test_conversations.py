from types import SimpleNamespace

import pytest
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
from tokenizers import AddedToken

from vacc_deploy.calibration.conversations import ConversationEncoder, DocumentEncoder
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import CalibrationError
from vacc_deploy.progress import SILENT
from vacc_deploy.text import backend, chat_template
from vacc_deploy.text.tokenizer import Tokenizer

OPENING_TEMPLATE = R1_TEMPLATE.replace(
    "'<｜Assistant｜>'}}{% endif", "'<｜Assistant｜><think>\\n'}}{% endif"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\\n'}}"
    "{% endif %}"
)
# The constructs of Qwen3's template: a namespace that is filled from the end, a turn that counts
# thoughts, and a switch that nobody gives.
THINKING = (
    "{%- set ns = namespace(last=messages|length - 1, open=true) %}"
    "{%- for message in messages[::-1] %}"
    "{%- if ns.open and message.role == 'user' and message.content is string %}"
    "{%- set ns.open = false %}{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}"
    "{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
CHAT = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def make_tokenizer(directory, template=R1_TEMPLATE, *, special=("<think>", "</think>"), **changes):
    backend = build_backend()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    config = tokenizer_config(chat_template=template, **changes)
    return Tokenizer.from_dir(write_tokenizer(directory, backend, config))


def answering(content):
    return (CHAT[0], {"role": "assistant", "content": content})


def text_of(tokenizer, document):
    return tokenizer.decode(ConversationEncoder(tokenizer).encode(document))


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ("a", "\n</think>\n\na"),
        ("  a\n", "\n</think>\n\na"),
        ("<think>\nhm\n</think>\n\na", "hm\n</think>\n\na"),
        ("hm\n</think>\n\na", "hm\n</think>\n\na"),
        ("<think>hm</think>a", "hm</think>a"),
        ("<think>\nnever ended", "never ended"),
        ("", "\n</think>"),
    ],
)
def test_after_a_think_opening_the_thought_is_closed(tmp_path, content, written):
    tokenizer = make_tokenizer(tmp_path, OPENING_TEMPLATE)
    encoder = ConversationEncoder(tokenizer)
    assert encoder.form == "after-think-opening"
    text = text_of(tokenizer, answering(content))
    prompt = f"{BOS}{USER}q{ASSISTANT}<think>\n"
    assert text.startswith(prompt) and text.endswith(EOS)
    assert text.removeprefix(prompt).removesuffix(EOS).rstrip() == written


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ("a", "<think>\n\n</think>\n\na"),
        ("<think>\nhm\n</think>\n\na", "<think>\nhm\n</think>\n\na"),
        ("hm\n</think>\n\na", "<think>\nhm\n</think>\n\na"),
    ],
)
def test_a_reasoning_model_writes_the_opening_its_template_leaves_out(tmp_path, content, written):
    tokenizer = make_tokenizer(tmp_path)
    assert ConversationEncoder(tokenizer).form == "with-think-opening"
    assert text_of(tokenizer, answering(content)) == f"{BOS}{USER}q{ASSISTANT}{written}{EOS}"


def test_think_tokens_alone_are_no_sign_of_a_model_that_thinks(tmp_path):
    # As in Qwen3-4B-Instruct-2507: the vocabulary has the marks, the template knows no thoughts.
    special = ("<think>", "</think>", "<|im_start|>", "<|im_end|>")
    tokenizer = make_tokenizer(tmp_path, CHATML, special=special, add_bos_token=False)
    encoder = ConversationEncoder(tokenizer)
    assert encoder.form == "plain"
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoder.encode(CHAT)) == f"{prompt}a<|im_end|>"
    # The model's own answers: no thought is forced on it.
    assert tokenizer.decode(encoder.encode_prompt(CHAT)) == prompt


def test_a_template_without_an_opening_that_drops_thoughts_is_of_a_model_that_thinks(tmp_path):
    # As in Qwen3 and R1-0528: both allow a system prompt and leave the opening to the model.
    special = ("<think>", "</think>", "<|im_start|>", "<|im_end|>")
    tokenizer = make_tokenizer(tmp_path, THINKING, special=special, add_bos_token=False)
    encoder = ConversationEncoder(tokenizer)
    assert encoder.form == "with-think-opening"
    system = {"role": "system", "content": "s"}
    text = tokenizer.decode(encoder.encode((system, *answering("hm</think>a"))))
    prompt = "".join(f"<|im_start|>{role}<|im_end|>\n" for role in ("system\ns", "user\nq"))
    assert text == f"{prompt}<|im_start|>assistant\n<think>\nhm</think>a<|im_end|>"


@pytest.mark.parametrize(
    ("template", "form"),
    [
        # For one turn only: the marks stay the sign.
        (
            "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
            "{{ messages[0]['content'] }}",
            "with-think-opening",
        ),
        # It leaves out whole turns, not the thoughts of one.
        ("{{ messages[-1]['content'] }}", "plain"),
    ],
)
def test_a_template_that_knows_no_earlier_turns(tmp_path, template, form):
    tokenizer = make_tokenizer(tmp_path, template, special=("<think>", "</think>"))
    encoder = ConversationEncoder(tokenizer)
    assert encoder.form == form
    assert encoder.encode(CHAT)


def test_without_think_tokens_the_answer_follows_the_prompt(tmp_path):
    tokenizer = make_tokenizer(tmp_path, special=())
    encoder = ConversationEncoder(tokenizer)
    assert encoder.form == "plain"
    ids = [BOS_ID, USER_ID, *byte_ids("q"), ASSISTANT_ID, *byte_ids("a"), EOS_ID]
    assert encoder.encode(CHAT) == ids
    assert encoder.encode(answering(f"a{EOS}")) == ids


def test_the_prompt_is_what_a_server_sends_and_no_token_spans_its_end(tmp_path):
    # "\n\n" is one token here: encoding prompt and answer as one text would join the two line ends.
    for template in (OPENING_TEMPLATE, R1_TEMPLATE):
        tokenizer = make_tokenizer(tmp_path, template, special=("<think>", "</think>", "\n\n"))
        served = tokenizer.encode_chat(CHAT[:1], add_generation_prompt=True)
        ids = ConversationEncoder(tokenizer).encode(CHAT)
        assert ids[: len(served)] == served
        assert ids.count(BOS_ID) == 1 and ids.count(EOS_ID) == 1
    assert tokenizer.decode(ids[len(served) :]) == f"<think>\n\n</think>\n\na{EOS}"


@pytest.mark.parametrize("template", [R1_TEMPLATE, OPENING_TEMPLATE])
def test_prompts_equal_those_of_transformers(tmp_path, template):
    transformers = pytest.importorskip("transformers")
    tokenizer = make_tokenizer(tmp_path, template)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(
        list(CHAT[:1]), add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = ConversationEncoder(tokenizer).encode(CHAT)
    assert ids[: len(expected)] == expected


def test_own_answers_begin_after_the_think_opening(tmp_path):
    for number, template in enumerate((R1_TEMPLATE, OPENING_TEMPLATE)):
        tokenizer = make_tokenizer(tmp_path / str(number), template)
        ids = ConversationEncoder(tokenizer).encode_prompt(CHAT)
        assert tokenizer.decode(ids) == f"{BOS}{USER}q{ASSISTANT}<think>\n"
    plain = make_tokenizer(tmp_path / "plain", special=())
    ids = ConversationEncoder(plain).encode_prompt(CHAT)
    assert plain.decode(ids) == f"{BOS}{USER}q{ASSISTANT}"


def test_the_end_token_is_that_of_the_template_not_of_the_text_end(tmp_path):
    special = ("<|im_start|>", "<|im_end|>")
    tokenizer = make_tokenizer(tmp_path, CHATML, special=special, add_bos_token=False)
    text = text_of(tokenizer, CHAT)
    assert text == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    assert tokenizer.answer_end_id() == tokenizer.token_id("<|im_end|>")


def test_a_template_that_ends_answers_with_nothing_leaves_the_end_of_sequence(tmp_path):
    template = "{% for m in messages %}{{m['content']}} {% endfor %}"
    assert make_tokenizer(tmp_path / "1", template).answer_end_id() == EOS_ID
    assert make_tokenizer(tmp_path / "2", None).answer_end_id() == EOS_ID


def test_earlier_turns_are_as_the_template_writes_them(tmp_path):
    tokenizer = make_tokenizer(tmp_path, OPENING_TEMPLATE)
    first = answering("<think>\nhm\n</think>\n\na")
    text = text_of(tokenizer, (*first, *CHAT))
    assert text == (
        f"{BOS}{USER}q{ASSISTANT}\n\na{EOS}{USER}q{ASSISTANT}<think>\n\n</think>\n\na{EOS}"
    )


def test_without_a_template_the_turns_are_joined(tmp_path):
    tokenizer = make_tokenizer(tmp_path, None)
    assert ConversationEncoder(tokenizer).form == "joined"
    assert text_of(tokenizer, CHAT) == f"{BOS}q\na"


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("c4", "\u0439\nord " * 300),
        ("chat", ({"role": "user", "content": "\u0439\nord " * 300}, CHAT[1])),
        ("chat", ({"role": "user", "content": "\u0439\nord " * 900}, CHAT[1])),
    ],
)
@pytest.mark.parametrize("has_writer", [False, True])
def test_a_document_that_is_too_long_is_named(tmp_path, monkeypatch, kind, document, has_writer):
    monkeypatch.setattr(backend, "TOKENIZED_BYTES", 1000)
    monkeypatch.setattr(chat_template, "CONVERSATION_BYTES", 4000)
    path = tmp_path / "some" / "data.jsonl"
    encoder = DocumentEncoder(
        CalibrationSource(kind, path),
        make_tokenizer(tmp_path),
        300,
        writer=SimpleNamespace(batch_size=1, max_prompt_tokens=99) if has_writer else None,
        progress=SILENT,
    )
    with pytest.raises(CalibrationError) as caught:
        encoder.encode([document])
    message = str(caught.value)
    assert message.startswith(f"{path} has a record that is too long. It begins with '\u0439")
    assert "\n" not in message and len(message) < 500 and caught.value.exit_code == 1
    assert message.endswith(" Cut the record, or take it out.")

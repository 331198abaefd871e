"""Small tokenizers for tests: one id a byte, and the special tokens of R1-Distill."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
BOS_ID, EOS_ID, USER_ID, ASSISTANT_ID = 256, 257, 258, 259

R1_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{{bos_token}}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}"
)
# Our own, with the constructs of Qwen3's: a namespace that a loop from the end fills, slices, tests
# and methods of texts, tool calls, and a switch that a server may give.
QWEN3_TEMPLATE = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>' ~ call.name ~ (call.arguments | tojson) ~ '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# Our own, with the constructs of R1-0528's: the system prompt is gathered first, and no opening.
R1_0528_TEMPLATE = (
    "{% set ns = namespace(system='', first=true) %}{%- for m in messages %}"
    "{%- if m['role'] == 'system' %}{%- if ns.first %}{%- set ns.first = false %}"
    "{% set ns.system = ns.system + m['content'] %}{%- else %}"
    "{% set ns.system = ns.system + '\n\n' + m['content'] %}{%- endif %}{%- endif %}"
    "{%- endfor %}{{ bos_token }}{{ ns.system }}{%- for m in messages %}"
    "{% set content = m['content'] %}{%- if m['role'] == 'user' %}{{'<｜User｜>' + content}}"
    "{%- endif %}{%- if m['role'] == 'assistant' and content is not none %}"
    "{%- if '</think>' in content %}{%- set content = content.split('</think>')[1:] | join('') %}"
    "{%- endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
    "{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}"
)


def byte_ids(text: str) -> list[int]:
    """Ids of printable ASCII: the sorted byte-level alphabet begins at "!"; a space is U+0120."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index("\u0120" if char == " " else char) for char in text]


def build_backend(*, post_processor_bos: bool = True) -> Tokenizer:
    """Return a byte-level tokenizer whose one merge is of two bytes that no text has.

    llama.cpp reads no tokenizer without merges. The merged token has the id of such a byte.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pair, spare = ("\u00c0", "\u00c1"), "\u00ff"  # the bytes C0, C1 and FF
    vocab = {"".join(pair) if char == spare else char: idx for idx, char in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab, [pair]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True) for token in (BOS, EOS, USER, ASSISTANT)]
    )
    if post_processor_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, BOS_ID)]
        )
    return backend


def tokenizer_config(**changes: Any) -> dict[str, Any]:
    """Return a tokenizer_config.json like that of R1-Distill; a None takes the key out."""
    config: dict[str, Any] = {
        "add_bos_token": True,
        "bos_token": BOS,
        "eos_token": {"__type": "AddedToken", "content": EOS, "normalized": True},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": R1_TEMPLATE,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def r1_0528_config(**changes: Any) -> dict[str, Any]:
    """Return a tokenizer_config.json like that of DeepSeek-R1-0528-Qwen3-8B.

    It names the class of another form than that of its tokenizer.json, which is byte-level.
    """
    flags = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False}
    bos, eos = ({"content": token, "single_word": False, **flags} for token in (BOS, EOS))
    config: dict[str, Any] = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "legacy": True,
        "model_max_length": 131072,
        "pad_token": eos,
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": R1_0528_TEMPLATE,
    }
    return config | changes


def write_tokenizer(
    directory: Path, backend: Tokenizer | None = None, config: dict[str, Any] | None = None
) -> Path:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (backend or build_backend()).save(str(directory / "tokenizer.json"))
    config = tokenizer_config() if config is None else config
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return directory

"""Valid tokenizers, chat templates and prompts, all tiny."""

from seed_forms import dump, join, lines
from weight_seeds import LLAMA, QWEN2

TEMPLATES = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<\uff5cUser\uff5c>' + message['content'] | trim }}{% else %}{{ message.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<think>\\n' }}"
    "{% endif %}",
    "{%- set ns = namespace(n=0, text='') -%}{%- macro show(m) -%}{{ m.role | upper }}: "
    "{{ m.content }}{%- endmacro -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}"
    "{{ show(m) ~ loop.index0 }}{%- if loop.last and tools is none %}"
    "{{ {'a': [1, 2]} | tojson(indent=2) }}{% endif -%}{%- endfor -%}",
    "{% for m in messages[::-1] %}{% generation %}{{ m['content'].split('a')[-1].strip() }}"
    "{% endgeneration %}{% if m is defined and m.content is string and 'b' in m.content %}"
    "{{ strftime_now('%d %b') }}{% elif loop.index > 3 %}{{ raise_exception('no') }}{% endif %}"
    "{{ m | length }}{{ 'x' * 3 }}{% endfor %}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ range(3) | list }}{{ '%s' % 3 }}",
)


def tokenizer_json() -> dict:
    """Return a small byte-level tokenizer with two merges."""
    vocab = {char: number for number, char in enumerate("abcdefghijklmnoHelowrd\u0120")}
    vocab = {
        char: number for number, char in enumerate(dict.fromkeys([*vocab, "he", "ll", "hell"]))
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    names = ("<s>", "</s>", "<\uff5cUser\uff5c>")
    added = [
        {"id": len(vocab) + n, "content": c, **flags, "special": True} for n, c in enumerate(names)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    model |= {"vocab": vocab, "merges": [["h", "e"], ["l", "l"], ["he", "ll"]]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added} | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\s+|\w+|\W"}, "behavior": "Isolated",
             "invert": False}, byte_level]},
        "post_processor": None, "decoder": byte_level, "model": model,
    }  # fmt: skip


def tokenizers() -> list[bytes]:
    document = tokenizer_json()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    size = len(document["model"]["vocab"])
    decoder = {
        str(entry["id"]): {k: v for k, v in entry.items() if k != "id"}
        for entry in document["added_tokens"]
    }
    decoder[str(size + 3)] = {"content": "<pad>", **flags, "special": True}
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "pad_token": "<pad>"}
    config |= {"tokenizer_class": "LlamaTokenizerFast", "model_max_length": 512}
    more = {"added_tokens_decoder": decoder, "extra_special_tokens": ["<x>"]}
    special = {"eos_token": {"content": "</s>", **flags}, "additional_special_tokens": ["<y>"]}
    model = dump(LLAMA | {"vocab_size": size + 8})
    processor = {"type": "TemplateProcessing", "pair": []}
    processor["single"] = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    processor["special_tokens"] = {"<s>": {"id": "<s>", "ids": [size], "tokens": ["<s>"]}}
    spaces = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "first",
        "split": False,
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    other = {
        **document,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace],
        },
    }
    other |= {"pre_tokenizer": spaces, "decoder": {"type": "Fuse"}, "post_processor": processor}
    other |= {
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    }
    return [
        join(dump(document), dump(config), b"", b"", model),
        join(dump(document), dump(config | more), dump({"<z>": size + 5}), dump(special), model),
        join(dump(other), dump(config), b"", dump(special), b""),
    ]


def vocabularies() -> list[bytes]:
    vocab = tokenizer_json()["model"]["vocab"]
    merges = b"#version: 0.2\nh e\nl l\nhe ll\n"
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}
    gpt2 = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "add_bos_token": True}
    added = dump({"<|endoftext|>": len(vocab), "<x>": len(vocab) + 1})
    return [
        join(dump(vocab), merges, dump(config), added, b"", dump(QWEN2)),
        join(dump(vocab), merges, dump(gpt2), b"", dump({"bos_token": "<s>"}), b""),
    ]


def seeds() -> dict[str, list[bytes]]:
    return {
        "tokenizer": tokenizers(),
        "vocabulary": vocabularies(),
        "template": [text.encode() for text in TEMPLATES],
        "prompts": [b"What is 1 + 1?\n", lines({"prompt": "a"}, {"prompt": "b", "id": 1})],
    }

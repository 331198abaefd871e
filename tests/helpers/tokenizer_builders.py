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


def write_tokenizer(
    directory: Path, backend: Tokenizer | None = None, config: dict[str, Any] | None = None
) -> Path:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (backend or build_backend()).save(str(directory / "tokenizer.json"))
    config = tokenizer_config() if config is None else config
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return directory

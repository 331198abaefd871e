"""Small checkpoints with tokenizer files of several kinds, and what transformers makes of them."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizer_builders import build_backend

SENTENCES = (
    "The quick brown fox doesn't jump over 1234 lazy dogs; it's what they've said.",
    "def add(a, b):\n    return a + b  # 数学 is 12345.678\n\n\n",
    "深度学习模型的量化：把权重变成整数。 naïve cafe\u0301 Å Å ﬁ 🙂👩‍👩‍👧 \t tabs\r\n",
)
# Added tokens with and without spaces around them, and in the middle of words.
MARKS = ("<think>", "</think>", "<|end_of_turn|>", "[PAD]", "<tool>", "<|endoftext|>", "<s>")
TEXT = "".join(
    f"{sentence} a{mark}b {mark} c  {mark}  \n{mark}\n {mark[:-1]} {mark.upper()}"
    for sentence in SENTENCES * 2
    for mark in MARKS
)
assert len(TEXT) > 4000


def added_token(content: str, *, special: bool = False, **flags: bool) -> dict[str, Any]:
    """Return an entry of ``added_tokens_decoder``."""
    base = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, **base, "special": special, **flags}


def train_backend(vocab_size: int = 420) -> tokenizers.Tokenizer:
    """Return a byte-level BPE tokenizer with merges, learnt from ``SENTENCES``."""
    backend = build_backend(post_processor_bos=False)
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = backend.decoder
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(SENTENCES * 3, trainer)
    return trained


def write_json(path: Path, value: Any) -> None:
    """Write one file as the trainers do."""
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def write_files(
    directory: Path,
    *,
    backend: tokenizers.Tokenizer | None = None,
    model_type: str = "llama",
    vocab_size: int = 480,
    config: dict[str, Any] | None = None,
    added: dict[str, int] | None = None,
    special: dict[str, Any] | None = None,
    slow: bool = False,
) -> Path:
    """Write the tokenizer files of a checkpoint, and ``config.json``.

    ``slow`` writes ``vocab.json`` and ``merges.txt`` in place of ``tokenizer.json``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend = backend or train_backend()
    write_json(directory / "config.json", {"model_type": model_type, "vocab_size": vocab_size})
    if config is not None:
        write_json(directory / "tokenizer_config.json", config)
    if added is not None:
        write_json(directory / "added_tokens.json", added)
    if special is not None:
        write_json(directory / "special_tokens_map.json", special)
    if not slow:
        backend.save(str(directory / "tokenizer.json"))
        return directory
    backend.model.save(str(directory))
    return directory


def their_tokenizer(directory: Path) -> Any:
    """Return what transformers loads from a directory."""
    return transformers.AutoTokenizer.from_pretrained(str(directory))


def their_ids(directory: Path, text: str = TEXT) -> list[int]:
    """Return the ids that transformers gives, without BOS and EOS."""
    ids: list[int] = their_tokenizer(directory).encode(text, add_special_tokens=False)
    return ids

"""Decides once which id every token of a checkpoint has, from all of its files.

``tokenizer.json`` holds the vocabulary; other files may name more tokens. What is settled here is
what calibration, ``verify`` and ``generate`` use, and what ``prepare`` and ``quantize`` write where
it is not what ``tokenizer.json`` says. Files are read only; see docs/prepare.md for the rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.errors import TokenConflictError
from vacc_deploy.text.backend import Backend, parse_document
from vacc_deploy.text.files import (
    MODEL_CONFIG_NAME,
    RESTORE,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
    read_large,
    read_object,
)
from vacc_deploy.text.token_ledger import Ledger, count_tokens, list_tokens
from vacc_deploy.text.token_statements import read_numbered, read_special
from vacc_deploy.text.vocab_files import build_tokenizer


@dataclass(frozen=True)
class SettledTokens:
    """The tokenizer of a checkpoint as all of its files describe it.

    Attributes:
        backend: the library's tokenizer.
        config: the content of ``tokenizer_config.json``; empty where there is none.
        special: role, such as ``eos_token``, to token.
        generated: the bytes of a ``tokenizer.json`` that says the same; None where the
            checkpoint's own file does.
        notes: what a user should know about it, sentences.
    """

    backend: Backend
    config: Mapping[str, Any]
    special: Mapping[str, str]
    generated: bytes | None
    notes: tuple[str, ...]


def settle_tokens(directory: Path) -> SettledTokens:
    """Return the one tokenizer that all files of a checkpoint directory describe.

    Raises:
        TokenConflictError: two files, or a file and the library, disagree on an id.
        CheckpointError: there is no tokenizer, or a file of it is damaged.
    """
    path, notes, dropout = directory / TOKENIZER_NAME, list[str](), ""
    config = read_object(directory / TOKENIZER_CONFIG_NAME)
    model_config = read_object(directory / MODEL_CONFIG_NAME)
    defaults: Mapping[str, str] = {}
    if is_built := not path.is_file():
        built = build_tokenizer(directory, config, model_config)
        document, defaults = built.document, built.defaults
        backend = Backend(document, _dump(document), directory / VOCAB_NAME)
        notes.append(
            f"there is no {TOKENIZER_NAME}: it is made of vocab.json, merges.txt and the added "
            f"tokens, as {built.class_name} of transformers does."
        )
    else:
        data = read_large(path)
        document = parse_document(data, path)
        if dropout := _take_dropout(document):
            data = _dump(document)
            notes.append(dropout)
        backend = Backend(document, data, path)
    special = read_special(directory, config, defaults)
    tokens = {role: statement.content for role, statement in special.roles.items()}
    ledger = Ledger(directory, document, backend, set(tokens.values()), is_built=is_built)
    _check_ids(directory, backend)
    ledger.take_numbered(read_numbered(directory, config))
    ledger.take_special(special, model_config)
    generated = None
    if is_built or ledger.is_changed or dropout:
        ledger.finish()
        if is_built:
            document["post_processor"] = _post_processor(config, tokens, ledger.ids)
        generated = _dump(document)
        backend = Backend(document, generated, path)
        ledger.check(backend)
    notes += [*ledger.notes(), *special.notes, *note_outside(backend, model_config)]
    is_bos_wanted = config.get("add_bos_token") is True and "bos_token" not in tokens
    if is_bos_wanted and probe_leading_id(backend) is None:
        notes.append(
            f"add_bos_token in {TOKENIZER_CONFIG_NAME} is true, but bos_token names no token: no "
            "BOS is put in front of a text, as in transformers."
        )
    return SettledTokens(backend, config, tokens, generated, tuple(notes))


def _post_processor(
    config: Mapping[str, Any], tokens: Mapping[str, str], ids: Mapping[str, int]
) -> dict[str, Any]:
    """Return the post-processor of a tokenizer that has none: it puts the BOS where one is asked.

    transformers does not read ``add_bos_token`` where there is a ``tokenizer.json``.
    """
    bos = tokens.get("bos_token")
    if config.get("add_bos_token") is not True or bos is None:
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }

    def text(name: str, type_id: int) -> list[dict[str, Any]]:
        first = {"SpecialToken": {"id": bos, "type_id": type_id}}
        return [first, {"Sequence": {"id": name, "type_id": type_id}}]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }


def probe_leading_id(backend: Backend) -> int | None:
    """Return the id that the post-processor of ``tokenizer.json`` puts in front of a text."""
    bare, dressed = (backend.encode("a", special=special) for special in (False, True))
    return None if dressed[:1] == bare[:1] else dressed[0]


def _take_dropout(document: dict[str, Any]) -> str:
    """Take out what would make the ids of a text random; return a note, or nothing."""
    model = document.get("model")
    value = model.get("dropout") if isinstance(model, dict) else None
    if not value:
        return ""
    assert isinstance(model, dict)
    model["dropout"] = None
    return (
        f"{TOKENIZER_NAME} asks for a dropout of {value!r:.40}: the same text would have other ids "
        "each time. That is for training only; the ids here are those without it."
    )


def _check_ids(directory: Path, backend: Backend) -> None:
    """Refuse an id of two plain tokens: which of them it is read as is chance."""
    plain = backend.plain
    if len(set(plain.values())) == len(plain):
        return
    seen = dict[int, str]()
    for token, token_id in plain.items():
        if token_id in seen:
            raise TokenConflictError(
                f"The vocabulary of {directory} gives the id {token_id} to two tokens: "
                f"{seen[token_id]!r:.80} and {token!r:.80}. {RESTORE}"
            )
        seen[token_id] = token


def note_outside(backend: Backend, model_config: Mapping[str, Any]) -> list[str]:
    """Return a note on tokens for which the model has no row: one, or none."""
    size = model_config.get("vocab_size")
    largest = max(backend.size - 1, max(backend.added, default=0))
    if type(size) is not int or largest < size:
        return []
    vocab = backend.plain | backend.added_ids
    outside = sorted((token_id, token) for token, token_id in vocab.items() if token_id >= size)
    if not outside:
        return []
    names = [f"{token!r:.80} ({token_id})" for token_id, token in outside]
    return [
        f"the model has {size} rows (vocab_size in {MODEL_CONFIG_NAME}), none of them for "
        f"{count_tokens(names)}: {list_tokens(names)}. A text that holds such a token is refused. "
        "If the model was trained with it, its embedding was not resized before it was saved."
    ]


def _dump(document: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(document, indent=2, ensure_ascii=False)}\n".encode()

"""What the files beside ``tokenizer.json`` say of tokens: ids, how they match, special names.

Nothing is decided here: ``text.token_files`` compares these statements with ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import TOKEN_ID
from vacc_deploy.text.files import (
    ADDED_TOKENS_NAME,
    SPECIAL_TOKENS_NAME,
    TOKENIZER_CONFIG_NAME,
    damaged,
    read_object,
)

DECODER_KEY = "added_tokens_decoder"
CLASS_ORIGIN = "the tokenizer's class"  # of what no file of the checkpoint says
# In the order in which transformers adds those that have no id.
NAMES = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
_EXTRA_KEYS = ("extra_special_tokens", "additional_special_tokens")
_NAMED_KEY = "model_specific_special_tokens"  # as transformers 5 saves roles of one model alone
MATCHING = ("single_word", "lstrip", "rstrip", "normalized")
FLAGS = (*MATCHING, "special")


@dataclass(frozen=True)
class Statement:
    """What one file says of one token.

    Attributes:
        token_id: None where the file gives none.
        flags: how the token is matched, by the names of ``FLAGS``; None where the file does not
            say it.
        origin: the file, and the key in it, for messages.
    """

    content: str
    token_id: int | None
    flags: Mapping[str, bool] | None
    origin: str


@dataclass(frozen=True)
class SpecialNames:
    """The tokens with a role.

    Attributes:
        roles: role, such as ``eos_token``, to token; in the order in which they are added.
        extra: special tokens without a role.
        notes: sentences about files that name different tokens.
    """

    roles: Mapping[str, Statement]
    extra: tuple[Statement, ...]
    notes: tuple[str, ...]


def read_numbered(directory: Path, config: Mapping[str, Any]) -> list[Statement]:
    """Return the tokens that have an id in ``tokenizer_config.json`` or ``added_tokens.json``.

    Args:
        directory: of the checkpoint.
        config: the content of its ``tokenizer_config.json``.

    Raises:
        CheckpointError: a file is damaged.
    """
    path, origin = directory / TOKENIZER_CONFIG_NAME, f"{DECODER_KEY} of {TOKENIZER_CONFIG_NAME}"
    decoder = config.get(DECODER_KEY) or {}
    if not isinstance(decoder, dict):
        raise damaged(path, f"{DECODER_KEY} is {type(decoder).__name__}, expected an object")
    stated = []
    for key, value in decoder.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 9) or not isinstance(value, dict):
            raise damaged(path, f"{DECODER_KEY} has the entry {key!r:.40}, expected id and token")
        content = check_content(value.get("content"), path, f"{DECODER_KEY} {key}")
        flags = _read_flags(value, path, f"{DECODER_KEY} {key}")
        stated.append(Statement(content, int(key), flags, origin))
    path = directory / ADDED_TOKENS_NAME
    listed = []
    for content, token_id in read_object(path).items():
        check_content(content, path, "a token")
        if type(token_id) is not int or not 0 <= token_id < TOKEN_ID:
            raise damaged(path, f"{content!r:.80} has the id {token_id!r:.40}, expected a number")
        listed.append(Statement(content, token_id, None, ADDED_TOKENS_NAME))
    return [*sorted(stated, key=_by_id), *sorted(listed, key=_by_id)]


def read_special(
    directory: Path, config: Mapping[str, Any], defaults: Mapping[str, str]
) -> SpecialNames:
    """Return the tokens with a role, and the other special tokens.

    As transformers does it: where ``tokenizer_config.json`` has ``added_tokens_decoder``, its names
    count, else those of ``special_tokens_map.json``.

    Args:
        directory: of the checkpoint.
        config: the content of its ``tokenizer_config.json``.
        defaults: what the tokenizer's class takes for a role that ``config`` does not mention.

    Raises:
        CheckpointError: a name is not a token, or a file is damaged.
    """
    paths = directory / TOKENIZER_CONFIG_NAME, directory / SPECIAL_TOKENS_NAME
    legacy = read_object(paths[1])
    of_config, of_legacy = (
        dict(_roles(values, path)) for values, path in zip((config, legacy), paths, strict=True)
    )
    found = {
        role: Statement(token, None, None, CLASS_ORIGIN)
        for role, token in defaults.items()
        if role not in config
    }
    found |= of_legacy | of_config if DECODER_KEY in config else of_config | of_legacy
    notes = [
        f"{TOKENIZER_CONFIG_NAME} and {SPECIAL_TOKENS_NAME} name different tokens as {role}: "
        f"{of_config[role].content!r} and {of_legacy[role].content!r}. {found[role].content!r} "
        "counts, as in transformers."
        for role in sorted(of_config.keys() & of_legacy.keys())
        if of_config[role].content != of_legacy[role].content
    ]
    ordered = [*(role for role in NAMES if role in found), *(r for r in found if r not in NAMES)]
    extra = [*_extra(config, paths[0]), *_extra(legacy, paths[1])]
    return SpecialNames({role: found[role] for role in ordered}, tuple(extra), tuple(notes))


def default_flags(*, special: bool) -> dict[str, bool]:
    """Return how a token is matched for which no file says it."""
    return dict.fromkeys(MATCHING[:3], False) | {"normalized": not special, "special": special}


def check_content(value: Any, path: Path, what: str) -> str:
    """Return ``value`` if it can be a token."""
    # Half of a surrogate pair, which JSON can write, is no text that the library takes.
    if not isinstance(value, str) or not value or any("\ud800" <= c <= "\udfff" for c in value):
        raise damaged(path, f"{what} is {value!r:.80}, expected a token")
    return value


def _roles(values: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Statement]]:
    """Yield the roles of one file."""
    for role, value in values.items():
        # Beside the known roles transformers takes every text under a key of this form.
        is_other = role.endswith("_token") and isinstance(value, str) and value
        # An empty text names no token.
        if is_other or (role in NAMES and value not in (None, "")):
            yield role, _parse(value, path, role)
    for key in (_EXTRA_KEYS[0], _NAMED_KEY):
        named = values.get(key)
        for role, value in named.items() if isinstance(named, dict) else ():
            yield role, _parse(value, path, f"{key} {role}")


def _extra(values: Mapping[str, Any], path: Path) -> Iterator[Statement]:
    """Yield the special tokens of one file that have no role."""
    for key in _EXTRA_KEYS:
        tokens = values.get(key)
        if isinstance(tokens, list):
            for value in tokens:
                yield _parse(value, path, f"an entry of {key}")
        elif tokens is not None and not (isinstance(tokens, dict) and key == _EXTRA_KEYS[0]):
            raise damaged(path, f"{key} is {type(tokens).__name__}, expected a list of tokens")


def _parse(value: Any, path: Path, what: str) -> Statement:
    """Return a token given by its text, or by the object that transformers saves for one."""
    if not isinstance(value, dict):
        return Statement(check_content(value, path, what), None, None, path.name)
    content = value.get("content")
    if not isinstance(content, str) or not content:
        raise damaged(path, f"{what} is {value!r:.80}, expected a token")
    check_content(content, path, what)
    return Statement(content, None, _read_flags({**value, "special": True}, path, what), path.name)


def _read_flags(value: Mapping[str, Any], path: Path, what: str) -> dict[str, bool]:
    flags = default_flags(special=value.get("special") is True)
    for name in FLAGS:
        stated = value.get(name, flags[name])
        if not isinstance(stated, bool):
            raise damaged(path, f"{name} of {what} is {stated!r:.40}, expected true or false")
        flags[name] = stated
    return flags


def _by_id(statement: Statement) -> int:
    assert statement.token_id is not None
    return statement.token_id

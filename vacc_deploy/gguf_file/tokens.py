"""The tokenizer of a checkpoint as llama.cpp reads it from key-values.

Source: ``get_vocab_base`` of ``conversion/base.py`` and ``SpecialVocab`` of gguf-py, both of
llama.cpp. The ids are those that ``text.token_files`` settles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.gguf_file.pre_tokenizer import find_pre_tokenizer
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.text.backend import parse_document
from vacc_deploy.text.files import TOKENIZER_NAME, damaged, read_large
from vacc_deploy.text.template_files import find_template
from vacc_deploy.text.token_files import SettledTokens, settle_tokens
from vacc_deploy.text.tokenizer import Tokenizer

# Numbers of llama.cpp's token types.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# Roles of tokens in the order in which the converter writes their ids.
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Tokens that look so are control tokens, whatever tokenizer.json says.
_CONTROL_FORMS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
_CONTROL_TOKENS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


@dataclass(frozen=True)
class GgufTokens:
    """What the key-values ``tokenizer.*`` say.

    Attributes:
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: one for each row of the embedding.
        types: of the tokens.
        merges: pairs of tokens, a space between them.
        special: role, such as ``eos``, to id.
        adds_bos: whether a text begins with the BOS token.
        adds_space: whether a space is put in front of a text; None where it is not said.
        template: text of the chat template; empty where there is none that can be used.
        template_problem: why the one that is there cannot, a sentence; else empty.
        tokenizer: reads the same files.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    adds_bos: bool
    adds_space: bool | None
    template: str
    template_problem: str
    tokenizer: Tokenizer


def read_tokens(directory: Path, config: ModelConfig, pre: str = "") -> GgufTokens:
    """Return the tokenizer of a checkpoint directory.

    Args:
        directory: of the checkpoint.
        config: its configuration.
        pre: llama.cpp's name of the pre-tokenizer, where the user knows it; else it is found.

    Raises:
        CheckpointError: there is no tokenizer, a file of it is damaged, it has tokens for which the
            model has no row, or its chat template cannot be used.
        UnsupportedModelError: llama.cpp has no such pre-tokenizer.
    """
    settled = settle_tokens(directory)
    path = directory / TOKENIZER_NAME
    document = parse_document(settled.generated or read_large(path), path)
    template = find_template(directory, settled.config)
    if isinstance(template, CheckpointError):
        raise template
    name = pre or find_pre_tokenizer(document, settled.backend.added_ids)
    tokens, types = _list_tokens(settled, document, config.vocab_size, path)
    space = settled.config.get("add_prefix_space")
    tokenizer = Tokenizer(settled, directory=directory, template=template)
    problem = _try_template(tokenizer) if template else ""
    return GgufTokens(
        pre=name,
        tokens=tokens,
        types=types,
        merges=_list_merges(document, path),
        special=_special_ids(settled, config),
        adds_bos=tokenizer.adds_bos,
        # The converter passes it on for this architecture only.
        adds_space=space if isinstance(space, bool) and config.model_type == "llama" else None,
        template=template.source if template and not problem else "",
        template_problem=problem,
        tokenizer=tokenizer,
    )


def _try_template(tokenizer: Tokenizer) -> str:
    """Return why a chat template cannot write the plainest conversation, or nothing."""
    try:
        turns = [{"role": "user", "content": "a"}]
        tokenizer.render_chat(turns, add_generation_prompt=True)
    except CheckpointError as err:
        return str(err)
    return ""


def _list_tokens(
    settled: SettledTokens, document: Mapping[str, Any], count: int, path: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return a token and its type for each of ``count`` ids; those that nobody has are padded."""
    backend = settled.backend
    tokens = [f"[PAD{number}]" for number in range(count)]
    types = [UNUSED] * count
    outside = [
        (token_id, token)
        for token, token_id in (*backend.plain.items(), *backend.added_ids.items())
        if token_id >= count
    ]
    if outside:
        token_id, token = min(outside)
        raise CheckpointError(
            f"{path} gives {token!r:.80} the id {token_id}, but the model has {count} rows "
            "(vocab_size in config.json). llama.cpp wants a row for each token: resize the "
            "embedding, or use another --format."
        )
    for token, token_id in backend.plain.items():
        tokens[token_id], types[token_id] = token, NORMAL
    special = _special_flags(document)
    for token_id, token in backend.added.items():
        tokens[token_id] = token
        is_control = special.get(token, False) or _looks_like_control(token)
        types[token_id] = CONTROL if is_control else USER_DEFINED
    return tuple(tokens), tuple(types)


def _special_flags(document: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether each added token is special."""
    added = document.get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if added else []
    return {str(entry.get("content")): entry.get("special") is True for entry in entries}


def _looks_like_control(token: str) -> bool:
    has_form = any(token.startswith(start) and token.endswith(end) for start, end in _CONTROL_FORMS)
    return has_form or token in _CONTROL_TOKENS


def _list_merges(document: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return the merges as texts; ``tokenizer.json`` has texts or, newer, pairs."""
    stated = document["model"].get("merges")
    merges = list[str]()
    for merge in stated if isinstance(stated, list) else ():
        if isinstance(merge, str):
            merges.append(merge)
        elif isinstance(merge, list) and len(merge) == 2 and all(isinstance(m, str) for m in merge):
            # No token of bytes holds a space: the space's byte is the letter Ġ.
            merges.append(" ".join(part.replace(" ", "Ġ") for part in merge))
        else:
            raise damaged(path, f"its merges hold {merge!r:.80}, expected pairs of texts")
    if not merges:
        raise UnsupportedModelError(
            f"{path} has no merges, without which llama.cpp reads no tokenizer. Use another "
            "--format."
        )
    return tuple(merges)


def _special_ids(settled: SettledTokens, config: ModelConfig) -> dict[str, int]:
    """Return the ids of the tokens with a role: by the tokenizer's files, else by config.json."""
    found = dict[str, int]()
    for role in ROLES:
        token = settled.special.get(f"{role}_token")
        token_id = None if token is None else settled.backend.token_to_id(token)
        if token_id is None:
            stated = config.raw.get(f"{role}_token_id")
            token_id = stated if type(stated) is int else None
        if token_id is not None and 0 <= token_id < config.vocab_size:
            found[role] = token_id
    return found

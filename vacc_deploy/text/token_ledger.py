"""Compares the tokens of a ``tokenizer.json`` with what other files say, and adds what it lacks.

The rules are in docs/prepare.md. Ids are never changed: a disagreement is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vacc_deploy.errors import TokenConflictError, name_some
from vacc_deploy.text.backend import Backend
from vacc_deploy.text.files import (
    MODEL_CONFIG_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
)
from vacc_deploy.text.token_statements import (
    CLASS_ORIGIN,
    FLAGS,
    SpecialNames,
    Statement,
    default_flags,
)

_MAX_LISTED = 4  # tokens that a note lists
_SETTLE = (
    "The weights were trained with one of the two. Save the tokenizer of the training once more "
    "(save_pretrained) and copy its files here, or correct the statement that is wrong."
)


class Ledger:
    """The added tokens of a ``tokenizer.json``, and what other files change in them.

    Attributes:
        ids: added token to id.
        is_changed: whether the document no longer says what the file says.
    """

    def __init__(
        self,
        directory: Path,
        document: dict[str, Any],
        backend: Backend,
        names: set[str],
        *,
        is_built: bool,
    ) -> None:
        """Take the tokens of the document itself.

        Args:
            directory: of the checkpoint, for messages.
            document: the content of ``tokenizer.json``; it is changed.
            backend: the library's tokenizer of the unchanged document.
            names: the tokens with a role: they are special whatever their flags say.
            is_built: whether the document was made of the vocabulary files.

        Raises:
            TokenConflictError: the document states an id that the library does not give.
        """
        self._directory, self._document, self._backend = directory, document, backend
        self._names, self._is_built = names, is_built
        self._base = VOCAB_NAME if is_built else TOKENIZER_NAME
        self._behind = f"its place behind the tokens of {self._base}"
        document["added_tokens"] = document.get("added_tokens") or []
        self.ids, self.is_changed = dict[str, int](), False
        self._entries = dict[str, dict[str, Any]]()
        self._by_id, self._origins = dict[int, str](), dict[str, str]()
        self._renamed, self._appended = dict[str, str](), dict[str, list[str]]()
        self._marked, self._unnumbered, self._matched = list[str](), list[str](), list[str]()
        for entry in document["added_tokens"]:
            content, stated = entry["content"], int(entry["id"])
            given = backend.token_to_id(content)
            if given != stated:
                library = "the tokenizers library"
                raise self._two_ids(content, (stated, TOKENIZER_NAME), (given, library))
            self._enter(entry, TOKENIZER_NAME)

    def take_numbered(self, statements: Iterable[Statement]) -> None:
        """Add the tokens to which other files give an id."""
        for statement in statements:
            content, stated = statement.content, statement.token_id
            assert stated is not None
            given = self.ids.get(content, self._backend.token_to_id(content))
            if given is not None and given != stated:
                first = given, self._origins.get(content, self._base)
                raise self._two_ids(content, first, (stated, statement.origin))
            if content in self.ids:
                self._match(statement)
                continue
            if given is None:
                self._claim(statement)
                self._appended.setdefault(statement.origin, []).append(f"{content!r} ({stated})")
            else:
                self._marked.append(f"{content!r} ({stated})")
            self._add(statement, default_flags(special=content in self._names))

    def take_special(self, special: SpecialNames, model_config: Mapping[str, Any]) -> None:
        """Add the special tokens that no file numbers, in the order in which transformers does.

        Args:
            special: the special tokens.
            model_config: the content of ``config.json``, whose ids of BOS and EOS must be theirs.
        """
        for role, statement in (*special.roles.items(), *(("", extra) for extra in special.extra)):
            content = statement.content
            if content in self.ids:
                continue
            token_id = self._backend.token_to_id(content)
            if token_id is None:
                # The library's own rule.
                size = len(self._backend.plain)
                token_id = max(size, max(self._by_id, default=-1) + 1)
                self._claim(replace(statement, token_id=token_id))
                if statement.origin != CLASS_ORIGIN:
                    self._compare_role(role, content, token_id, model_config)
                self._unnumbered.append(f"{content!r} ({token_id})")
            else:
                self._marked.append(f"{content!r} ({token_id})")
            self._add(replace(statement, token_id=token_id), default_flags(special=True))

    def finish(self) -> None:
        """Bring the document in order."""
        self._document["added_tokens"].sort(key=lambda entry: int(entry["id"]))
        if self._renamed:
            vocab = self._document["model"]["vocab"]
            self._document["model"]["vocab"] = {
                self._renamed.get(token, token): token_id for token, token_id in vocab.items()
            }

    def check(self, backend: Backend) -> None:
        """Refuse ids that the library does not give to the tokens that were added."""
        for token_id, content in sorted(self._by_id.items()):
            given = backend.token_to_id(content)
            if given != token_id:
                first = token_id, self._origins[content]
                raise self._two_ids(content, first, (given, self._behind))

    def notes(self) -> list[str]:
        """Return a sentence for each kind of change."""
        notes = []
        # Beside vocab.json the added tokens always stand in a file of their own.
        for origin, tokens in self._appended.items() if not self._is_built else ():
            notes.append(
                f"{TOKENIZER_NAME} lacks {count_tokens(tokens)} of {origin}: "
                f"{list_tokens(tokens)}. Each is added with its id."
            )
        if self._renamed:
            pairs = [f"{old} is {new!r}" for old, new in self._renamed.items()]
            notes.append(f"placeholders in {self._base} are stated tokens: {list_tokens(pairs)}.")
        if self._marked and not self._is_built:
            notes.append(
                f"{TOKENIZER_NAME} has {count_tokens(self._marked)} in its plain vocabulary only, "
                f"which other files add: {list_tokens(self._marked)}. In a text each is one id now."
            )
        if self._unnumbered:
            notes.append(
                "special tokens to which no file gives an id get the next ones, as in "
                f"transformers: {list_tokens(self._unnumbered)}. Check that the model was trained "
                "with these ids."
            )
        if self._matched:
            notes.append(
                f"{TOKENIZER_CONFIG_NAME} and {self._base} match {count_tokens(self._matched)} in "
                f"different ways: {list_tokens(self._matched)}. {TOKENIZER_CONFIG_NAME} counts, as "
                "in transformers."
            )
        return notes

    def _match(self, statement: Statement) -> None:
        """Let the flags of ``added_tokens_decoder`` win over those of ``tokenizer.json``."""
        entry, flags = self._entries[statement.content], statement.flags
        if flags is None or all(entry.get(name, False) == flags[name] for name in FLAGS):
            return
        flags = {**flags, "special": flags["special"] or statement.content in self._names}
        changed = [name for name in FLAGS if entry.get(name, False) != flags[name]]
        if changed:
            entry |= flags
            self._matched.append(f"{statement.content!r} ({', '.join(changed)})")
            self.is_changed = True

    def _claim(self, statement: Statement) -> None:
        """Refuse an id that another token has; a placeholder gives way."""
        token_id = statement.token_id
        assert token_id is not None
        other = self._by_id.get(token_id) or self._backend.id_to_token(token_id)
        if other is None:
            return
        vocab = self._document["model"].get("vocab")
        # What converters write for a row of the embedding that has no token.
        is_filler = other == f"[PAD{token_id}]" and other not in self.ids
        if is_filler and isinstance(vocab, dict):
            self._renamed[other] = statement.content
            return
        raise TokenConflictError(
            f"The files of {self._directory} give the id {token_id} to two tokens: {other!r:.80} "
            f"by {self._origins.get(other, self._base)}, {statement.content!r:.80} by "
            f"{statement.origin}. {_SETTLE}"
        )

    def _compare_role(
        self, role: str, content: str, token_id: int, model_config: Mapping[str, Any]
    ) -> None:
        """Refuse an id that is only a guess where the model's configuration says another one."""
        key = f"{role}_id"
        value = model_config.get(key) if role in ("bos_token", "eos_token") else None
        stated = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
        if stated and token_id not in stated:
            configured = stated[0], f"{key} of {MODEL_CONFIG_NAME}"
            raise self._two_ids(content, (token_id, self._behind), configured)

    def _add(self, statement: Statement, flags: dict[str, bool]) -> None:
        """Add a token; ``flags`` are for one whose file says none."""
        flags = {**(statement.flags or flags)}
        flags["special"] |= statement.content in self._names
        entry = {"id": statement.token_id, "content": statement.content, **flags}
        self._document["added_tokens"].append(entry)
        self._enter(entry, statement.origin)
        self.is_changed = True

    def _enter(self, entry: dict[str, Any], origin: str) -> None:
        content, token_id = entry["content"], entry["id"]
        self._entries[content], self._origins[content] = entry, origin
        self.ids[content], self._by_id[token_id] = token_id, content

    def _two_ids(
        self, content: str, first: tuple[Any, str], second: tuple[Any, str]
    ) -> TokenConflictError:
        both = f"{first[0]!s:.40} by {first[1]}, {second[0]!s:.40} by {second[1]}"
        return TokenConflictError(
            f"The files of {self._directory} give the token {content!r:.80} two ids: {both}. "
            f"{_SETTLE}"
        )


def count_tokens(items: list[str]) -> str:
    """Return their number with the noun."""
    return f"{len(items)} token" + ("" if len(items) == 1 else "s")


def list_tokens(items: list[str]) -> str:
    """Return the first ones, and how many more there are."""
    return name_some([item[:80] for item in items], _MAX_LISTED)

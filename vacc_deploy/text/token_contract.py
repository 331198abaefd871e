"""The tokenizer contract: what must hold so that a served model gets the ids it was trained with.

The ids of ``tokenizer.json``, read here without transformers, are those of the installed
transformers; a text comes back from its ids; a prompt begins with one BOS at the most.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CheckpointError
from vacc_deploy.text.backend import Backend
from vacc_deploy.text.library import LibraryReading, read_with_library
from vacc_deploy.text.probes import CHAT, PROBES
from vacc_deploy.text.template_files import find_template
from vacc_deploy.text.token_files import SettledTokens, settle_tokens
from vacc_deploy.text.tokenizer import Tokenizer

_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


@dataclass(frozen=True)
class ProbeResult:
    """One text, read by ``tokenizer.json`` and by transformers.

    Attributes:
        name: of the probe.
        text: what is encoded; for the conversation what the chat template wrote.
        ids: by ``tokenizer.json``, without tokens that are added around the text.
        library_ids: by transformers; None where it gives none.
        decoded: the text of ``ids``.
        expected: what they should decode to: ``text``, after the normalizer of ``tokenizer.json``;
            None where that does what is not computed here.
        is_recomposed: whether the ids of transformers are those of the text in the form NFC of
            Unicode, which ``tokenizer.json`` does not ask for.
    """

    name: str
    text: str
    ids: tuple[int, ...]
    library_ids: tuple[int, ...] | None
    decoded: str
    expected: str | None
    is_recomposed: bool

    @property
    def agrees(self) -> bool:
        """Whether transformers gives the same ids, but for the form of letters, or none at all."""
        return self.library_ids in (None, self.ids) or self.is_recomposed

    @property
    def is_exact(self) -> bool:
        """Whether the text comes back from its ids, letter by letter."""
        return self.decoded == self.text

    @property
    def is_lost(self) -> bool:
        """Whether it does not, and no normalizer explains that."""
        return not self.is_exact and self.expected not in (None, self.decoded)

    @property
    def first_difference(self) -> int:
        """The place of the first id that differs; the shorter length where one is a beginning."""
        pairs = zip(self.ids, self.library_ids or (), strict=False)
        equal = [own == other for own, other in pairs]
        return equal.index(False) if False in equal else len(equal)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "text": self.text,
            "ids": list(self.ids),
            "transformers_ids": None if self.library_ids is None else list(self.library_ids),
            "agrees": self.agrees,
            "is_recomposed": self.is_recomposed,
            "round_trip": "lost" if self.is_lost else "exact" if self.is_exact else "normalized",
        }


@dataclass(frozen=True)
class TokenContract:
    """What was compared, and whether it held.

    Attributes:
        transformers_version: empty where transformers could not be asked.
        library_class: the class that it chose for the directory.
        library_error: why it gives no ids; empty where it does.
        is_wrong_form: whether it reads a tokenizer of bytes as one of another form.
        probes: a result for each text of ``PROBES``.
        chat: the conversation ``CHAT``, with the mark for the answer; None where there is no chat
            template, or it fails.
        template_file: name of the file that holds the chat template.
        chat_error: why it fails, a sentence; empty where it does not.
        library_chat: what transformers writes for it, None where it writes nothing.
        library_chat_error: why transformers writes nothing.
        opens_answer: whether the template writes a mark after which the model answers.
        opening, library_opening: ids of the first probe as a prompt, by this tool and by
            transformers, with the special tokens that each adds.
        bos_id: id of the BOS token, None where there is none.
        bos_by_file: BOS tokens that ``tokenizer.json`` puts in front of a text.
        bos_in_chat: BOS tokens with which the chat template begins.
        adds_bos: whether a text of this model begins with BOS.
    """

    transformers_version: str
    library_class: str
    library_error: str
    is_wrong_form: bool
    probes: tuple[ProbeResult, ...]
    chat: ProbeResult | None
    template_file: str
    chat_error: str
    library_chat: str | None
    library_chat_error: str
    opens_answer: bool
    opening: tuple[int, ...]
    library_opening: tuple[int, ...]
    bos_id: int | None
    bos_by_file: int
    bos_in_chat: int
    adds_bos: bool

    @property
    def different(self) -> tuple[ProbeResult, ...]:
        """The probes, and the conversation, to which transformers gives other ids."""
        chat = (self.chat,) if self.chat is not None and self.writes_same_chat else ()
        return tuple(probe for probe in (*self.probes, *chat) if not probe.agrees)

    @property
    def writes_same_chat(self) -> bool:
        """Whether transformers writes the same text for the conversation."""
        return self.chat is not None and self.library_chat == self.chat.text

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it held."""
        return (
            not self.library_error
            and not self.different
            and self.opening == self.library_opening
            and not any(probe.is_lost for probe in self.probes)
            and max(self.bos_by_file, self.bos_in_chat) <= 1
            and not self.chat_error
            and (self.chat is None or self.writes_same_chat)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "passed": self.passed,
            "transformers_version": self.transformers_version or None,
            "transformers_class": self.library_class or None,
            "transformers_error": self.library_error or None,
            "probes": [probe.to_dict() for probe in self.probes],
            "chat": None if self.chat is None else self.chat.to_dict(),
            "chat_error": self.chat_error or None,
            "same_chat_text": None if self.chat is None else self.writes_same_chat,
            "bos": {
                "id": self.bos_id,
                "begins_text": self.adds_bos,
                "in_front_of_text": self.bos_by_file,
                "in_chat": self.bos_in_chat,
            },
        }


def read_contract(directory: Path) -> TokenContract:
    """Compare the tokenizer of a directory with what the installed transformers makes of it.

    Raises:
        TokenConflictError: two of its files disagree on an id.
        CheckpointError: it has no tokenizer, or a file of it is damaged.
    """
    settled, tokenizer = read_tokenizer(directory)
    return compare(settled, tokenizer, read_with_library(directory))


def read_tokenizer(directory: Path) -> tuple[SettledTokens, Tokenizer]:
    """Return the settled tokens of a directory, and its tokenizer; see ``settle_tokens``."""
    settled = settle_tokens(directory)
    template = find_template(directory, settled.config)
    return settled, Tokenizer(settled, directory=directory, template=template)


def compare(settled: SettledTokens, tokenizer: Tokenizer, library: LibraryReading) -> TokenContract:
    """Return the contract of a tokenizer and what transformers makes of it.

    Raises:
        CheckpointError: the tokenizer cannot encode or decode a probe.
    """
    backend, has_ids = settled.backend, bool(library.ids)
    probes = tuple(
        _probe(tokenizer, backend, name, text, library.ids[index] if has_ids else None)
        for index, (name, text) in enumerate(PROBES)
    )
    chat, chat_error, opens_answer = None, "", False
    if tokenizer.has_chat_template:
        try:
            written = tokenizer.render_chat(CHAT, add_generation_prompt=True)
            opens_answer = _opens_answer(tokenizer, written)
            ids = library.chat_ids if library.chat is not None else None
            chat = _probe(tokenizer, backend, "chat", written, ids)
        except CheckpointError as err:
            chat_error = str(err)
    bos = tokenizer.bos_id
    text = PROBES[0][1]
    return TokenContract(
        transformers_version=library.version,
        library_class=library.class_name,
        library_error=library.error,
        is_wrong_form=library.is_byte_level is False and _is_byte_level(backend.section("decoder")),
        probes=probes,
        chat=chat,
        template_file=tokenizer.template_file,
        chat_error=chat_error,
        library_chat=library.chat,
        library_chat_error=library.chat_error,
        opens_answer=opens_answer,
        opening=tuple(tokenizer.encode(text, add_bos=tokenizer.adds_bos)),
        library_opening=library.opened[0] if has_ids else (),
        bos_id=bos,
        bos_by_file=_count_leading(backend.encode(text, special=True), bos),
        bos_in_chat=0 if chat is None else _count_leading(chat.ids, bos),
        adds_bos=tokenizer.adds_bos,
    )


def _opens_answer(tokenizer: Tokenizer, written: str) -> bool:
    """Return whether what stands behind the last question is the beginning of an answer."""
    if written != tokenizer.render_chat(CHAT, add_generation_prompt=False):
        return True
    # Some templates always end so; then nothing more stands in front of an answer.
    answer = {"role": "assistant", "content": "vacc-deploy-probe"}
    answered = tokenizer.render_chat((*CHAT, answer), add_generation_prompt=False)
    between = answered.removeprefix(written).partition(answer["content"])[0]
    return answered.startswith(written) and not between.strip()


def _probe(
    tokenizer: Tokenizer,
    backend: Backend,
    name: str,
    text: str,
    library_ids: tuple[int, ...] | None,
) -> ProbeResult:
    ids = tuple(tokenizer.encode(text, add_bos=False))
    is_recomposed = False
    if library_ids not in (None, ids):
        composed = unicodedata.normalize("NFC", text)
        is_recomposed = library_ids == tuple(tokenizer.encode(composed, add_bos=False))
    expected = _normalize(backend.section("normalizer"), text)
    if expected is not None and _adds_space(backend.section("pre_tokenizer")):
        expected = f" {expected.removeprefix(' ')}"
    return ProbeResult(
        name,
        text,
        ids,
        library_ids,
        decoded=tokenizer.decode(ids),
        expected=expected,
        is_recomposed=is_recomposed,
    )


def _normalize(section: Any, text: str) -> str | None:
    """Return a text after a normalizer of Unicode forms; None after one of another kind."""
    if section is None:
        return text
    kind = section.get("type") if isinstance(section, dict) else None
    if kind in _UNICODE_FORMS:
        return unicodedata.normalize(kind, text)
    if kind != "Sequence":
        return None
    for part in section.get("normalizers", ()):
        normalized = _normalize(part, text)
        if normalized is None:
            return None
        text = normalized
    return text


def _is_byte_level(decoder: Any) -> bool:
    """Return whether a decoder of ``tokenizer.json`` makes text of bytes, as that of GPT-2."""
    return any(part.get("type") == "ByteLevel" for part in _parts(decoder, "decoders"))


def _adds_space(pre_tokenizer: Any) -> bool:
    """Return whether a pre-tokenizer puts a space in front of a text that has none."""
    return any(part.get("add_prefix_space") for part in _parts(pre_tokenizer, "pretokenizers"))


def _parts(section: Any, key: str) -> list[dict[str, Any]]:
    """Return a part of ``tokenizer.json``, and the parts that it is a sequence of."""
    inner = section.get(key, ()) if isinstance(section, dict) else ()
    return [part for part in (section, *inner) if isinstance(part, dict)]


def _count_leading(ids: Sequence[int], bos: int | None) -> int:
    """Return how many BOS tokens stand in front."""
    return next((n for n, token_id in enumerate(ids) if token_id != bos), len(ids))

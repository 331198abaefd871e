"""The rules for the tokenizer of a directory: its files, its ids, and the chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.check.special_ids import find_id_problems
from vacc_deploy.errors import CheckpointError, name_some, shorten
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.problems import tokens
from vacc_deploy.problems.files import NO_CHAT_TEMPLATE
from vacc_deploy.problems.problem import Problem
from vacc_deploy.text.files import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME
from vacc_deploy.text.library import LibraryReading, start_library
from vacc_deploy.text.token_contract import ProbeResult, TokenContract, compare, read_tokenizer
from vacc_deploy.text.token_files import SettledTokens, note_outside
from vacc_deploy.vamc.readiness import find_missing_tokenizer

_SHOWN_IDS = 6
_SHOWN_TEXT = 40


@dataclass(frozen=True)
class TokenFindings:
    """What was found of a tokenizer.

    Attributes:
        contract: what was compared; None where the tokenizer cannot be used.
        problems: every broken rule.
    """

    contract: TokenContract | None
    problems: tuple[Problem, ...]


def find_token_problems(
    directory: Path, config: ModelConfig, library: Future[LibraryReading] | None = None
) -> list[Problem]:
    """Return every broken rule for the tokenizer of a directory; see ``check_tokens``."""
    return list(check_tokens(directory, config, library).problems)


def check_tokens(
    directory: Path, config: ModelConfig, library: Future[LibraryReading] | None = None
) -> TokenFindings:
    """Compare the tokenizer of a directory with transformers, and with the configurations.

    Args:
        directory: a checkpoint directory.
        config: its architecture.
        library: of ``text.library.start_library``, where it was begun before: transformers needs
            seconds to start, in which other things can be checked. It is begun here otherwise.
    """
    if missing := find_missing_tokenizer(directory):
        return TokenFindings(None, tuple(missing))
    try:
        library = library or start_library(directory)
        settled, tokenizer = read_tokenizer(directory)
        contract = compare(settled, tokenizer, library.result())
    except CheckpointError as err:
        told = str(err).rstrip(".")
        return TokenFindings(None, (tokens.TOKENIZER_UNUSABLE.broken(told, where=TOKENIZER_NAME),))
    problems = (
        *_find_library_problems(contract),
        *_find_text_problems(contract),
        *_find_bos_problems(contract),
        *_find_chat_problems(contract),
        *find_id_problems(directory, config, settled, tokenizer),
        *_find_file_problems(config, settled),
    )
    return TokenFindings(contract, problems)


def _find_library_problems(contract: TokenContract) -> Iterator[Problem]:
    """Yield in what the ids of the installed transformers are others."""
    name = f"transformers {contract.transformers_version}".strip()
    if contract.library_error:
        text = f"{name} gives no ids: {contract.library_error}"
        yield tokens.LIBRARY_FAILS.broken(text.rstrip("."), where=TOKENIZER_CONFIG_NAME)
        return
    if different := contract.different:
        rule = tokens.WRONG_FORM if contract.is_wrong_form else tokens.IDS_DIFFER
        first = different[0]
        own, other = _cut_ids(first, first.ids), _cut_ids(first, first.library_ids or ())
        names = name_some([probe.name for probe in different])
        form = (
            f" reads the directory as {contract.library_class}, which does not split text into "
            "bytes as its tokenizer.json does. It"
            if contract.is_wrong_form
            else ""
        )
        yield rule.broken(
            f"{name}{form} gives other ids than {TOKENIZER_NAME} for {len(different)} of "
            f"{len(contract.probes) + (contract.chat is not None)} probes ({names}). In the first "
            f"one the ids differ from number {first.first_difference} on: {other}, expected {own}",
            where=TOKENIZER_CONFIG_NAME,
            got=other,
            expected=own,
        )
    if recomposed := [probe.name for probe in contract.probes if probe.is_recomposed]:
        yield tokens.LETTER_FORMS.broken(
            f"{name} brings a text into the form NFC of Unicode, which {TOKENIZER_NAME} "
            f"does not ask for: other ids for the probe {name_some(recomposed)}",
            where=TOKENIZER_NAME,
        )
    if contract.probes[0].agrees and contract.opening != contract.library_opening:
        own, other = _show_ends(contract.opening), _show_ends(contract.library_opening)
        yield tokens.OTHER_OPENING.broken(
            f"{name} adds other special tokens to a text than the tokenizer files say: it "
            f"gives {other}, expected {own}",
            where=TOKENIZER_CONFIG_NAME,
            got=other,
            expected=own,
        )


def _find_text_problems(contract: TokenContract) -> Iterator[Problem]:
    """Yield which probes do not come back from their ids."""
    if lost := [probe for probe in contract.probes if probe.is_lost]:
        got, text = shorten(repr(lost[0].decoded)), shorten(repr(lost[0].expected))
        yield tokens.LOST_TEXT.broken(
            f"{TOKENIZER_NAME} does not give back {len(lost)} of "
            f"{len(contract.probes)} probes ({name_some([probe.name for probe in lost])}). "
            f"The first one becomes {got}, expected {text}",
            where=TOKENIZER_NAME,
            got=got,
            expected=text,
        )
    changed = [p.name for p in contract.probes if not p.is_exact and p.expected is None]
    if changed:
        yield tokens.NORMALIZED_TEXT.broken(
            f"the normalizer in {TOKENIZER_NAME} changes {len(changed)} of "
            f"{len(contract.probes)} probes ({name_some(changed)})",
            where=TOKENIZER_NAME,
        )


def _find_bos_problems(contract: TokenContract) -> Iterator[Problem]:
    """Yield where a prompt does not begin with exactly one BOS."""
    places = (
        (TOKENIZER_NAME, TOKENIZER_NAME, contract.bos_by_file),
        ("the chat template", contract.template_file, contract.bos_in_chat),
    )
    for place, where, count in places:
        if count > 1:
            yield tokens.DOUBLE_BOS.broken(
                f"{place} puts {count} BOS tokens (id {contract.bos_id}) in "
                "front of a prompt, expected 1",
                where=where,
                got=count,
                expected=1,
            )
    if contract.chat is not None and contract.adds_bos and not contract.bos_in_chat:
        yield tokens.CHAT_WITHOUT_BOS.broken(
            f"the chat template does not begin with the BOS token (id "
            f"{contract.bos_id}), with which the texts of this model begin",
            where=contract.template_file,
        )
    if contract.bos_by_file == contract.bos_in_chat == 1:
        yield tokens.BOS_BY_BOTH.broken(
            f"the chat template begins with BOS, and {TOKENIZER_NAME} puts one in "
            "front of a text as well",
            where=contract.template_file,
        )


def _find_chat_problems(contract: TokenContract) -> Iterator[Problem]:
    """Yield what is wrong with the chat template."""
    name = f"transformers {contract.transformers_version}"
    if contract.chat_error:
        yield tokens.TEMPLATE_FAILS.broken(
            contract.chat_error.rstrip("."), where=contract.template_file
        )
    if contract.chat is None:
        if not contract.chat_error:
            text = "the tokenizer files hold no chat template"
            yield NO_CHAT_TEMPLATE.broken(text, where=contract.template_file)
        return
    if not contract.opens_answer:
        yield tokens.NO_GENERATION_PROMPT.broken(
            "the chat template writes nothing behind the question that begins an answer",
            where=contract.template_file,
        )
    if contract.library_error:
        return
    if contract.library_chat is None:
        error = contract.library_chat_error.rstrip(".")
        text = f"{name} cannot use the chat template: {error}"
        yield tokens.LIBRARY_CHAT_FAILS.broken(text, where=contract.template_file)
    elif not contract.writes_same_chat:
        own, other = _cut_texts(contract.chat.text, contract.library_chat)
        yield tokens.CHAT_DIFFERS.broken(
            f"{name} writes another conversation than the chat template says: "
            f"{other}, expected {own}",
            where=contract.template_file,
            got=other,
            expected=own,
        )


def _find_file_problems(config: ModelConfig, settled: SettledTokens) -> Iterator[Problem]:
    """Yield what the tokenizer files themselves say."""
    for name in ("truncation", "padding"):
        if value := settled.backend.section(name):
            got = shorten(repr(value))
            yield tokens.SAVED_SETTINGS.broken(
                f"{TOKENIZER_NAME} holds a {name} ({got}), expected null",
                where=f"{TOKENIZER_NAME}: {name}",
                got=got,
                expected="null",
            )
    outside = note_outside(settled.backend, {"vocab_size": config.vocab_size})
    for sentence in outside:
        yield tokens.OUTSIDE_VOCABULARY.broken(sentence.rstrip("."), where=TOKENIZER_NAME)
    for note in settled.notes:
        if note not in outside:
            yield tokens.SETTLED.broken(note.rstrip("."), where=TOKENIZER_NAME)


def _cut_ids(probe: ProbeResult, ids: Sequence[int]) -> str:
    """Return the ids from the first difference on, as far as a message shows them."""
    start = probe.first_difference
    shown = ", ".join(map(str, ids[start : start + _SHOWN_IDS]))
    return f"[{shown}{', ...' if len(ids) > start + _SHOWN_IDS else ''}]"


def _show_ends(ids: Sequence[int]) -> str:
    """Return the first and the last two ids."""
    if len(ids) <= 4:
        return f"[{', '.join(map(str, ids))}]"
    return f"[{ids[0]}, {ids[1]}, ..., {ids[-2]}, {ids[-1]}]"


def _cut_texts(own: str, other: str) -> tuple[str, str]:
    """Return two texts from the first difference on, as far as a message shows them."""
    pairs = zip(own, other, strict=False)
    start = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(own), len(other)))
    end = start + _SHOWN_TEXT
    return repr(own[start:end]), repr(other[start:end])

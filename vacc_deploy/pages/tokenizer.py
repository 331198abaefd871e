"""The section that shows the tokenizer contract: the ids of two readers, text by text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vacc_deploy.pages.markup import Markup, join, pairs, table, text
from vacc_deploy.pages.page import Section, Writer, paragraph

_MOST_PROBES = 50
_HEADERS = ("tokens-probe", "tokens-count", "tokens-library-ids", "tokens-back")
_BACK = {"exact": "tokens-exact", "normalized": "tokens-normalized", "lost": "tokens-lost"}


def tokenizer_section(say: Writer, contract: Mapping[str, Any] | None) -> Section | None:
    """Return what the tokenizer contract found; None where it was not tried.

    Args:
        say: the texts.
        contract: ``TokenContract.to_dict()``.
    """
    if not contract:
        return None
    verdict = "tokens-held" if contract.get("passed") else "tokens-differ"
    version = contract.get("transformers_version") or "–"
    bos = contract.get("bos") or {}
    rows = [
        (say("tokens-library"), text(version)),
        (say("tokens-class"), text(contract.get("transformers_class") or "–")),
        (say("tokens-bos"), text("–" if bos.get("id") is None else bos["id"])),
    ]
    if error := contract.get("transformers_error"):
        rows.append((say("tokens-error"), text(error)))
    return Section(
        "tokenizer", join([paragraph(say(verdict)), pairs(rows), _probes(say, contract)])
    )


def _probes(say: Writer, contract: Mapping[str, Any]) -> Markup:
    """Return a row for each text that was tried."""
    chat = contract.get("chat")
    probes = [*contract.get("probes", ())[:_MOST_PROBES], *([chat] if chat else [])]
    rows = [
        (
            text(probe["name"]),
            text(len(probe["ids"])),
            say(_agreement(probe)),
            say(_BACK[probe["round_trip"]]),
        )
        for probe in probes
    ]
    return table([say(key) for key in _HEADERS], rows, label=say.plain("section-tokenizer"))


def _agreement(probe: Mapping[str, Any]) -> str:
    if probe["transformers_ids"] is None:
        return "tokens-none"
    if probe["is_recomposed"]:
        return "tokens-composed"
    return "tokens-same" if probe["agrees"] else "tokens-other"

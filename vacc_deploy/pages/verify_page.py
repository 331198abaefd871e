"""The page of ``verify``."""

from __future__ import annotations

from vacc_deploy.errors import VaccDeployError
from vacc_deploy.pages.audit import audit_section
from vacc_deploy.pages.evidence import Evidence, read_evidence
from vacc_deploy.pages.figures import Source
from vacc_deploy.pages.layers import (
    layers_section,
    linears_section,
    rounding_section,
    scales_section,
)
from vacc_deploy.pages.origin import calibration_section, commands_section, versions_section
from vacc_deploy.pages.page import Head, Section, Verdict, Writer, build_page, notes_section
from vacc_deploy.pages.passages import passages_section, unreadable_section
from vacc_deploy.pages.scores import kl_section, score_tiles
from vacc_deploy.pages.tokenizer import tokenizer_section
from vacc_deploy.pages.words import find_passages
from vacc_deploy.reference.verify import VerifyResult
from vacc_deploy.text.tokenizer import Tokenizer


def verify_page(result: VerifyResult, *, language: str, command_line: str) -> str:
    """Return the page of a comparison, one whole HTML file.

    Args:
        result: what ``verify`` returned.
        language: one of ``texts.LANGUAGES``.
        command_line: what writes this page again.
    """
    say, values = Writer(language), result.to_dict()
    source, evidence = Source("verify", values), read_evidence(result.deployed_dir)
    tiles = score_tiles(say, source)
    head = Head("verify", result.model, _verdict(say, result), tiles)
    token_kl = result.scores.token_kl if result.scores else None
    return build_page(
        say,
        head,
        [
            notes_section(say, result.notes),
            kl_section(say, source, token_kl),
            _words(say, result),
            layers_section(say, source),
            rounding_section(say, source),
            linears_section(say, evidence),
            scales_section(say, evidence),
            audit_section(say, source),
            tokenizer_section(say, values.get("tokenizer")),
            *_origins(say, result, evidence, command_line),
        ],
    )


def _origins(
    say: Writer, result: VerifyResult, evidence: Evidence, command_line: str
) -> list[Section | None]:
    return [
        calibration_section(say, evidence),
        versions_section(say, evidence, {"reference": str(result.reference_dir)}),
        commands_section(say, evidence, command_line),
    ]


def _verdict(say: Writer, result: VerifyResult) -> Verdict:
    """Return the verdict in words, with what failed as the command says it."""
    if result.failures:
        key = "verify-failed" if result.scores else "verify-damaged"
        return Verdict("bad", say("failed"), say(key), result.failures)
    if result.passed:
        is_close = result.limits and result.scores and result.limits.notes(result.scores)
        key = "verify-passed-close" if is_close else "verify-passed"
        return Verdict("good", say("passed"), say(key))
    return Verdict("open", say("not-judged"), say("verify-open"))


def _words(say: Writer, result: VerifyResult) -> Section | None:
    if result.scores is None or result.tokens is None:
        return None
    try:
        tokenizer = Tokenizer.from_dir(result.deployed_dir)
        passages = find_passages(result.tokens, result.scores, tokenizer.decode)
    except VaccDeployError as err:
        # The comparison stands; only its words cannot be shown.
        return unreadable_section(say, str(err))
    return passages_section(say, passages)

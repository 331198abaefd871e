"""The page of ``quantize``."""

from __future__ import annotations

from vacc_deploy.pages.audit import audit_section
from vacc_deploy.pages.evidence import read_evidence
from vacc_deploy.pages.figures import Source, count, digits, figure
from vacc_deploy.pages.layers import linears_section, scales_section
from vacc_deploy.pages.markup import Markup, text
from vacc_deploy.pages.origin import calibration_section, commands_section, versions_section
from vacc_deploy.pages.page import (
    Head,
    Verdict,
    Writer,
    build_page,
    notes_section,
    small,
    tile,
)
from vacc_deploy.quantize.result import QuantizeResult
from vacc_deploy.results import format_bytes


def quantize_page(result: QuantizeResult, *, language: str, command_line: str) -> str:
    """Return the page of a finished quantization, one whole HTML file.

    Args:
        result: what ``quantize`` returned; of several formats the page shows the files of one.
        language: one of ``texts.LANGUAGES``.
        command_line: what writes the output and this page again.
    """
    say, source = Writer(language), Source("quantize", result.to_dict())
    evidence = read_evidence(result.main_dir)
    sentence = say("quantize-again" if result.already_finished else "quantize-written")
    head = Head(
        "quantize",
        result.model,
        Verdict("written", say("written"), sentence),
        _tiles(say, source),
    )
    return build_page(
        say,
        head,
        [
            notes_section(say, (*result.warnings, *result.notes)),
            linears_section(say, evidence),
            scales_section(say, evidence),
            audit_section(say, evidence.report),
            calibration_section(say, evidence),
            versions_section(say, evidence),
            commands_section(say, evidence, command_line),
        ],
    )


def _tiles(say: Writer, source: Source) -> list[Markup]:
    """Return the most important figures of a run."""
    before = source.figure("input_bytes", format_bytes)
    tiles = [
        tile(
            say("size"),
            source.figure("output_bytes", format_bytes),
            small(say("size-from", bytes=before)),
            small(text(", ".join(source.texts("formats", 20)))),
        )
    ]
    if source.number("totals.mean_error_ratio_gptq_to_rtn") is not None:
        ratio = source.figure("totals.mean_error_ratio_gptq_to_rtn", digits)
        kept = say("linears-of", number=source.figure("totals.num_linears", count))
        tiles += [
            tile(say("mean-ratio"), ratio, small(say("mean-ratio-of"))),
            tile(say("linears-kept"), source.figure("totals.num_gptq", count), small(kept)),
            tile(say("saturated"), source.figure("totals.num_saturated", count)),
        ]
    seconds = source.number("seconds")
    if seconds is not None:
        shown = say("seconds-unit", seconds=figure(seconds, "quantize.seconds", digits))
        memory = source.figure("peak_memory_bytes", format_bytes)
        tiles.append(tile(say("seconds"), shown))
        tiles.append(tile(say("peak-memory"), memory))
    return tiles

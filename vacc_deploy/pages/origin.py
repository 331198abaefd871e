"""Where a directory comes from: calibration text, versions, options, hashes and commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vacc_deploy import __version__
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, REPORT_NAME
from vacc_deploy.pages.evidence import Evidence
from vacc_deploy.pages.figures import Source, count
from vacc_deploy.pages.markup import Markup, element, folded, join, pairs, table, text
from vacc_deploy.pages.page import MOST_ROWS, Section, Writer, paragraph
from vacc_deploy.results import command

# The options of quantize that its manifest tells, by their names there.
_OPTIONS = {
    "num_samples": "--num-samples",
    "sequence_length": "--seq-len",
    "seed": "--seed",
    "evaluation_share": "--evaluation-share",
    "effort": "--effort",
    "shrinkage": "--shrinkage",
    "dampening_frac": "--dampening",
    "max_answer_tokens": "--max-answer-tokens",
    "gguf_embeddings": "--gguf-embeddings",
    "gguf_pre": "--gguf-pre",
    "group_size": "--group-size",
}
# A page with more files than these has them folded.
_FEW_FILES = 60


def calibration_section(say: Writer, evidence: Evidence) -> Section | None:
    """Return the text that the weights were calibrated on."""
    if REPORT_NAME in evidence.unreadable or not evidence.report.values:
        return None
    report = evidence.report
    if not evidence.is_calibrated:
        return Section("calibration", paragraph(say("no-calibration")))
    total = say(
        "calibration-total",
        tokens=report.figure("calibration.tokens", count),
        rows=report.figure("calibration.num_samples", count),
        length=report.figure("calibration.sequence_length", count),
        held=report.figure("calibration.num_held_out_samples", count),
    )
    rows = []
    for index, source in enumerate(report.records("calibration.sources", MOST_ROWS)):
        path = f"calibration.sources.{index}"
        rows.append(
            (
                text(_short(source.get("kind"))),
                text(_short(source.get("file"))),
                report.figure(f"{path}.rows", count),
                report.figure(f"{path}.held_out_rows", count),
                report.figure(f"{path}.tokens", count),
                report.figure(f"{path}.documents_used", count),
                _hash(source.get("sha256")),
            )
        )
    names = ("source", "file", "rows", "held-out", "tokens", "documents", "hash")
    label = say.plain("section-calibration")
    listed = table([say(name) for name in names], rows, label=label)
    return Section("calibration", join([paragraph(total), listed]))


def versions_section(
    say: Writer, evidence: Evidence, more: Mapping[str, str] | None = None
) -> Section:
    """Return what wrote the directory, with which options, and its files.

    Args:
        say: the texts.
        evidence: of the directory.
        more: keys of texts to values, for example the float model's directory.
    """
    manifest = evidence.manifest
    rows = [(say("directory"), text(evidence.directory))]
    rows += [(say(key), text(value)) for key, value in (more or {}).items()]
    tool = manifest.get("tool.name"), manifest.get("tool.version"), manifest.get("command")
    if manifest.values:
        rows.append((say("written-by"), text(" ".join(_short(part) for part in tool if part))))
        rows.append((say("libraries"), text(_list_pairs(manifest.get("libraries")))))
        rows.append((say("options"), text(_list_pairs(manifest.get("options")))))
    rows.append((say("this-tool"), text(f"vacc-deploy {__version__}")))
    parts = [pairs(rows)]
    for name, reason in evidence.unreadable.items():
        parts.append(paragraph(say("unreadable", file=text(name), reason=text(reason))))
    if not manifest.values and MANIFEST_NAME not in evidence.unreadable:
        parts.append(paragraph(say("no-manifest")))
    parts.append(_files(say, manifest))
    return Section("versions", join(parts))


def commands_section(say: Writer, evidence: Evidence, page_command: str) -> Section:
    """Return the commands that make the directory and the page again."""
    parts = []
    wrote = writing_command(evidence)
    if wrote and wrote != page_command:
        parts += [paragraph(say("command-wrote")), _code(wrote)]
    parts += [paragraph(say("command-page")), _code(page_command)]
    return Section("commands", join(parts))


def writing_command(evidence: Evidence) -> str:
    """Return the command line that wrote a directory; empty where that is not known.

    The paths of calibration files are not written down: a word in angle brackets stands for each.
    """
    manifest = evidence.manifest
    source = manifest.get("source.path")
    if not isinstance(source, str):
        return ""
    place = f"<{_short(source)}>"
    if manifest.get("command") == "prepare":
        return command("prepare", "--weights", place, "--output", evidence.directory)
    if manifest.get("command") != "quantize":
        return ""
    words: list[object] = ["quantize", place, "--output", evidence.directory]
    options = Source("options", manifest.get("options") or {})
    for name in options.texts("formats", 10):
        words += ["--format", "gptq" if name == "gptq-one-group" else name]
    if options.get("method") == "rtn":
        words += ["--method", "rtn"]
    for entry in evidence.report.records("calibration.sources", MOST_ROWS):
        weight = entry.get("weight")
        share = f":{weight:g}" if isinstance(weight, float) and weight != 1 else ""
        words += [
            "--calibration",
            f"{_short(entry.get('kind'))}=<{_short(entry.get('file'))}>{share}",
        ]
    for name, option in _OPTIONS.items():
        value = options.get(name)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
            words += [option, _short(value)]
    if options.get("answers") == "own":
        words += ["--answers", "own"]
    for name in ("act_order", "scale_search"):
        if options.get(name) is False:
            words.append(f"--no-{name.replace('_', '-')}")
    return command(*words)


def _files(say: Writer, manifest: Source) -> Markup:
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        return Markup("")
    rows = []
    for name, entry in list(files.items())[:MOST_ROWS]:
        values = entry if isinstance(entry, dict) else {}
        # Not through a path: a name has dots.
        size = Source(f"manifest.files[{name}]", values).figure("bytes", count)
        content, header = values.get("sha256"), values.get("header_sha256")
        shown = _hash(content) if content else say("header-hash", hash=_hash(header))
        rows.append((text(_short(name)), size, shown))
    headers = [say(key) for key in ("file", "bytes", "hash")]
    listed = table(headers, rows, label=say.plain("files"), class_="files")
    if len(files) > MOST_ROWS:
        more = say("more", number=text(f"{len(files) - MOST_ROWS:,}"))
        listed = join([listed, paragraph(more)])
    if len(files) <= _FEW_FILES:
        return join([element("h3", say("files")), listed])
    return folded(say("files"), listed)


def _code(line: str) -> Markup:
    return element("pre", element("code", text(line)), lang="en")


def _hash(value: Any) -> Markup:
    return element("span", text(_short(value)), class_="hash")


def _short(value: Any) -> str:
    return "–" if value is None else str(value)[:300]


def _list_pairs(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return "–"
    shown = [
        f"{_short(key)} {plain if isinstance(plain, str) else json.dumps(plain)}"
        for key, plain in list(value.items())[:100]
    ]
    return ", ".join(shown)[:4000]

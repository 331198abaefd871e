"""Tell whether an output that stands already is the one that a run would write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    read_manifest,
    record_file,
    remove_leftovers,
)
from vacc_deploy.errors import CheckpointError, OutputError, list_problems
from vacc_deploy.json_files import read_json
from vacc_deploy.quantize.identity import differences
from vacc_deploy.quantize.journal import unfinished_run
from vacc_deploy.quantize.result import REPORT_NAME, TIMING_NAME, QuantizeResult
from vacc_deploy.solver.records import LinearRecord


def finished_identity(output_dir: Path) -> dict[str, Any] | None:
    """Return the identity of a finished output of ``quantize``, None where there is none.

    An interrupted run that would replace it comes first: then there is none either.
    """
    path = output_dir / TIMING_NAME
    if not (output_dir / MANIFEST_NAME).is_file() or not path.is_file():
        return None
    if unfinished_run(output_dir) is not None:
        return None
    try:
        timing = read_json(path, limit_bytes=MAX_MANIFEST_BYTES)
    except CheckpointError:
        return None
    identity = timing.get("identity") if isinstance(timing, dict) else None
    return identity if isinstance(identity, dict) else None


def take_finished(
    result: QuantizeResult,
    recorded: dict[str, Any],
    identity: dict[str, Any],
    *,
    overwrite: bool,
    dry_run: bool,
) -> QuantizeResult | None:
    """Return the result of a finished output, or None where it is another's to be replaced.

    Args:
        result: what is planned.
        recorded: the identity of the finished output.
        identity: of the run now.
        overwrite: it may be replaced.
        dry_run: what the run that wrote it had still to remove stays.

    Raises:
        OutputError: it comes from other inputs, options or versions, or one of its files is
            damaged, and it may not be replaced.
    """
    output_dir = result.output_dir
    problems = differences(recorded, identity)
    reason = "was made with other inputs, options or versions"
    if not problems:
        problems, reason = _damages(output_dir), "is damaged"
    if problems and not overwrite:
        raise OutputError(
            f"{output_dir} exists and {reason}:\n{list_problems(problems, limit=len(problems))}\n"
            "Give --overwrite to replace it, or choose another --output."
        )
    if problems:
        return None
    if not dry_run:
        remove_leftovers(output_dir)
    first = output_dir if len(result.formats) == 1 else output_dir / result.formats[0]
    report = read_json(first / REPORT_NAME, limit_bytes=MAX_MANIFEST_BYTES)
    return replace(
        result,
        linears=tuple(LinearRecord(**record) for record in report["linears"]),
        warnings=tuple(report["warnings"]),
        already_finished=True,
    )


def _damages(directory: Path) -> list[str]:
    """Return what differs from the manifest, and from those of the directories it lists."""
    files = (read_manifest(directory) or {}).get("files")
    if not isinstance(files, dict):
        return [f"{directory / MANIFEST_NAME} lists no files"]
    problems = []
    for name, entry in files.items():
        path = directory / name
        if name.startswith("/") or ".." in path.relative_to(directory).parts:
            problems.append(f"{MANIFEST_NAME} lists {name!r}, which lies outside {directory}")
        elif not path.is_file():
            problems.append(f"{path} is missing")
        elif not isinstance(entry, dict) or record_file(path).sha256 != entry.get("sha256"):
            problems.append(f"{path} has another hash than {MANIFEST_NAME} gives")
        elif path.name == MANIFEST_NAME:
            problems += _damages(path.parent)
    return problems

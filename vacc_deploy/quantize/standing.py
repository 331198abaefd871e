"""Look once at what stands where a run would write, and decide by it.

Nothing of it is trusted later: the files of an interrupted run are hashed again before use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import MANIFEST_BYTES
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import CheckpointError, OutputError, list_problems, shorten
from vacc_deploy.json_files import read_json
from vacc_deploy.outputs.damages import find_damages
from vacc_deploy.outputs.partial import find_writer, partial_path
from vacc_deploy.outputs.run_files import GGUF_PREFIX
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.identity import differences
from vacc_deploy.quantize.maxima import read_ranges
from vacc_deploy.quantize.record_checks import read_identity, read_linear
from vacc_deploy.quantize.records import RUN_NAME, Run, read_run
from vacc_deploy.quantize.result import REPORT_NAME, TIMING_NAME, QuantizeResult

# A finished output holds the identity of its run in the timing file. The identity names processor
# and threads, so in a file that the manifest lists it would make the bytes differ by machine; a
# file of its own would be one more that no manifest lists. ``finish`` writes it, this module reads.
IDENTITY_KEY = "identity"


@dataclass(frozen=True)
class Finished:
    """A finished output of ``quantize``, made by a run with this identity."""

    identity: dict[str, Any]


@dataclass(frozen=True)
class Foreign:
    """Shards of an interrupted run that this version cannot go on with.

    Attributes:
        reason: the whole message.
        lost: the damaged file for which no version can; None where another version can.
    """

    reason: str
    lost: Path | None = None


# A ``Run`` is interrupted and has finished layers; None is nothing that a run could use or lose.
Standing = Run | Finished | Foreign | None


def look_at(output_dir: Path, formats: tuple[str, ...]) -> Standing:
    """Return what stands in ``output_dir`` or, first, in the partial directory beside it."""
    partial = partial_path(output_dir)
    try:
        run = read_run(partial, formats)
    except OutputError as err:
        return Foreign(str(err))
    except CheckpointError:
        run = None
        # The shards of several formats lie in directories.
        patterns = ("model-*.safetensors", "*/model-*.safetensors", f"{GGUF_PREFIX}*.safetensors")
        if any(any(partial.glob(pattern)) for pattern in patterns):
            return Foreign(
                f"{partial} holds shards of an interrupted run, but {RUN_NAME} there is damaged, "
                "so that none can be used again. Give --overwrite to begin again.",
                lost=partial / RUN_NAME,
            )
    # The interrupted run comes first: it may be about to replace the output.
    if run is not None and run.finished:
        return run
    if not all((output_dir / name).is_file() for name in (MANIFEST_NAME, TIMING_NAME)):
        return None
    try:
        timing = read_json(output_dir / TIMING_NAME, limit_bytes=MANIFEST_BYTES)
    except CheckpointError:
        return None
    identity = timing.get(IDENTITY_KEY) if isinstance(timing, dict) else None
    try:
        return Finished(read_identity(identity))
    except ValueError:
        return None


def find_obstacle(standing: Standing, *, resume: bool, overwrite: bool) -> str:
    """Return why finished layers of an interrupted run stand in the way, or an empty text.

    They are not destroyed without being asked to.
    """
    if overwrite:
        return ""
    if isinstance(standing, Foreign) and not (standing.lost and resume):
        return standing.reason
    if isinstance(standing, Run) and not resume:
        # It is no interrupted one where it is still at work.
        return find_writer(standing.partial) or (
            f"{standing.partial} holds {standing.finished} of {standing.num_layers} finished "
            "layers of an interrupted run. Give --resume to go on from there, or --overwrite to "
            "begin again."
        )
    return ""


def continue_run(run: Run, identity: dict[str, Any] | None, num_layers: int) -> Run:
    """Return the interrupted run, resumed once more; ``identity`` None cannot be compared.

    Args:
        run: the interrupted run.
        identity: of the run now.
        num_layers: layers of the model.

    Raises:
        OutputError: it has other inputs, options or versions; every difference is named.
    """
    different = [] if identity is None else differences(run.identity, identity)
    if run.num_layers != num_layers:
        different.append(f"layers: {run.num_layers} then, {num_layers} now")
    if different:
        raise OutputError(
            f"{run.partial} was begun with other inputs, options or versions:\n"
            f"{list_problems(different, limit=len(different))}\n"
            "Give the same as then to resume, or --overwrite, without --resume, to begin again."
        )
    return replace(run, resumes=run.resumes + 1)


def take_finished(
    planned: QuantizeResult, standing: Finished, identity: Mapping[str, Any], progress: Progress
) -> QuantizeResult:
    """Return the result of a finished output; ``progress`` shows the files that are checked.

    Raises:
        OutputError: it comes from other inputs, options or versions, or one of its files is
            damaged.
    """
    output_dir = planned.output_dir
    problems: Sequence[str] = differences(standing.identity, identity)
    reason, first = "was made with other inputs, options or versions", "Give"
    # Hashing every file takes long: only where the identity is the same.
    if not problems:
        problems, reason = find_damages(output_dir, progress), "is damaged"
        first = "Move the files that differ away, then give"  # --overwrite keeps them
    if problems:
        raise OutputError(
            f"{output_dir} exists and {reason}:\n{list_problems(problems, limit=len(problems))}\n"
            f"{first} --overwrite, without --resume, to replace it, or choose another --output."
        )
    # Every format has the same linears in its report.
    path = planned.main_dir / REPORT_NAME
    report = read_json(path, limit_bytes=MANIFEST_BYTES)
    try:
        linears = tuple(map(read_linear, report["linears"]))
        audit = read_ranges(report.get("audit", []))  # earlier versions measured none
        warnings = tuple(shorten(warning, 1000) for warning in report["warnings"])
    except (ValueError, TypeError, LookupError) as err:
        raise OutputError(
            f"{path} is damaged: {shorten(err)}. Give --overwrite, without --resume, to replace "
            f"{output_dir}, or choose another --output."
        ) from err
    return replace(planned, linears=linears, audit=audit, warnings=warnings, already_finished=True)

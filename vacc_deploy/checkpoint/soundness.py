"""Find weights that no model can work with: zero, constant, NaN or infinite, and cut downloads.

Headers, names and shapes are ``reader``'s. How a tensor is read is ``scan``'s; here is the policy:
what of it is a fault, and what is only worth a remark.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from vacc_deploy.checkpoint.cut_files import (
    BIAS,
    CODES,
    LINEAR,
    NORM,
    SCALE,
    TABLE,
    CutFinder,
    module_of,
)
from vacc_deploy.checkpoint.gguf_tensors import GgufTensorInfo
from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.checkpoint.manifest import name_source, read_manifest
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.scan import (
    BLOCK_CODES,
    BLOCK_SCALES,
    INFINITY,
    TensorFacts,
    looks_filled,
    scan_tensor,
)
from vacc_deploy.errors import CheckpointError, list_problems, name_some
from vacc_deploy.formats.layouts import GGUF
from vacc_deploy.formats.q8_0 import BLOCK, BLOCK_BYTES, BLOCKS, parted_row
from vacc_deploy.models.config import EMBEDDING, LAYER_LINEARS, LM_HEAD
from vacc_deploy.problems.problem import Problem, Rule
from vacc_deploy.problems.values import (
    CUT_FILE,
    DEAD_ROWS,
    DEAD_TENSOR,
    NOT_FINITE,
    ZERO_SCALE,
)
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.results import command

# A layer whose two outputs are zero passes its input on: block expansion starts new layers so, and
# converters pad a model with them. What feeds such an output does not matter.
_FEEDS = {"o_proj": ("q_proj", "k_proj", "v_proj"), "down_proj": ("gate_proj", "up_proj")}
# The two that are judged in place of a linear's Q8_0 blocks.
_BLOCK_SCALES, _BLOCK_CODES = f"{BLOCKS}_scales", f"{BLOCKS}_codes"
# The last part of the name of a linear's tensor to what it is, in all layouts.
_PARTS = {
    "weight": LINEAR,
    "bias": BIAS,
    "qweight": CODES,
    "weight_packed": CODES,
    "scales": SCALE,
    "weight_scale": SCALE,
    _BLOCK_SCALES: SCALE,
    _BLOCK_CODES: CODES,
}
# Rows of zeros that are worth a remark: more than one in twenty, and of a linear more than these
# away from its end. Fewer are pruned or never trained, and those at the end are padding.
_MANY_ZERO_ROWS = 0.05
_INNER_ZERO_ROWS = 7


@dataclass
class Findings:
    """What is wrong with the values of a checkpoint.

    Attributes:
        faults: a line for each tensor with which the model cannot work, and for each cut file.
        remarks: what it may work with, sentences.
        files: the names of the files that hold the faults.
    """

    faults: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    def add_fault(self, info: TensorInfo, rule: Rule, problem: str) -> None:
        """Add a fault of one tensor, under the name by which its file knows it."""
        if problem.endswith(INFINITY) and info.dtype == "F64":
            problem += ", or more than float32 can, in which it is used"
        text = f"{info.stored_name} in {info.path.name}: {problem}"
        where = f"{info.path.name}: {info.stored_name}"
        self.faults.append(rule.broken(text, where=where))
        self.files.add(info.path.name)


def check_weights(
    checkpoint: Checkpoint, progress: Progress = SILENT, *, whole: bool = True
) -> tuple[str, ...]:
    """Refuse a checkpoint whose values no model can work with; return the remarks on others.

    Args:
        checkpoint: the directory; all of its tensors are read, or ...
        progress: learns of every file.
        whole: ... of each linear three rows, and the others whole.

    Raises:
        CheckpointError: names file, tensor and row, and what to do.
    """
    found = find_unsound(checkpoint, progress, whole=whole)
    if found.faults:
        raise CheckpointError(
            f"{checkpoint.directory} holds weights that no model can work with:\n"
            f"{list_problems(found.faults)}\n{advise(checkpoint, found.files)}",
            found.faults,
        )
    return tuple(found.remarks)


def advise(checkpoint: Checkpoint, files: Iterable[str]) -> str:
    """Return what to do about damaged weight files, sentences."""
    directory = checkpoint.directory
    made_by = (read_manifest(directory) or {}).get("command")
    source = name_source(directory).removeprefix(": ")
    if made_by in ("prepare", "quantize") and source:
        again = command(str(made_by), source, "--output", directory)
        return (
            f"{directory} was made from {source}. If the weights are damaged there too, download "
            f"them again into it. Move {directory} away, then run:\n  {again}"
        )
    return (
        f"Download again: {name_some(sorted(files))}. If the new files hold the same, the training "
        "or the merge that wrote them went wrong: make the model again."
    )


def find_unsound(
    checkpoint: Checkpoint,
    progress: Progress = SILENT,
    *,
    whole: bool = True,
    tables: bool = True,
) -> Findings:
    """Return what is wrong with the values; see ``check_weights``.

    Args:
        checkpoint: the directory.
        progress: learns of every file.
        whole: read the linears whole; else three rows of each.
        tables: read embeddings, head and packed codes whole; else three rows of each. Then nobody
            reads the rest later, and NaN in these rows is told at once.
    """
    tensors = _judged(checkpoint.tensors)
    kinds = {name: kind for name in tensors if (kind := _kind_of(name))}
    sampled = {*(() if whole else (LINEAR,)), *(() if tables else (TABLE, CODES))}
    facts = dict(_scan(tensors, kinds, progress, sampled, nan_counts=not tables))
    found, told, idle = Findings(), set[str](), _find_idle(facts)
    # What quantize wrote is no download: the tensors that it copied are named one by one.
    made_by = (read_manifest(checkpoint.directory) or {}).get("command")
    if made_by != "quantize" and checkpoint.config.quantization_format != GGUF:

        def is_dead(name: str) -> bool:
            return _fault_of(kinds[name], facts[name], is_idle=module_of(name) in idle) is not None

        for cut in CutFinder(tensors, kinds, facts, is_dead).find(checkpoint.shards):
            found.faults.append(CUT_FILE.broken(cut.to_text(), where=cut.shard.path.name))
            found.files.add(cut.shard.path.name)
            told |= set(cut.tensors)
    remarks = defaultdict[str, list[str]](list)
    for name, known in facts.items():
        if name in told:
            continue
        if problem := _fault_of(kinds[name], known, is_idle=module_of(name) in idle):
            found.add_fault(tensors[name], *problem)
        elif remark := _remark_of(name, kinds[name], known):
            remarks[remark].append(name)
    for remark, names in remarks.items():
        text = f"{name_some(names, 1)}: {remark}"
        found.remarks.append(DEAD_ROWS.broken(text, where=names[0]))
    return found


def _judged(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors by name, the blocks of a linear as its scales and its codes."""
    judged = dict[str, TensorInfo]()
    for name, info in tensors.items():
        linear, _, part = name.rpartition(".")
        if part != BLOCKS:
            judged[name] = info
            continue
        rows, count = info.shape[0], info.num_bytes // BLOCK_BYTES
        scales, codes = f"{linear}.{_BLOCK_SCALES}", f"{linear}.{_BLOCK_CODES}"
        judged[scales] = replace(info, name=scales, dtype=BLOCK_SCALES, shape=(rows, count // rows))
        judged[codes] = replace(info, name=codes, dtype=BLOCK_CODES, shape=(count, BLOCK))
    return judged


def _kind_of(name: str) -> str:
    """Return what a tensor is; empty for one whose values are not judged."""
    *path, part = name.split(".")
    if name in (EMBEDDING, LM_HEAD):
        return TABLE
    if path and path[-1].endswith("norm") and part == "weight":
        return NORM
    return _PARTS.get(part, "") if path and path[-1] in LAYER_LINEARS else ""


def _scan(
    tensors: Mapping[str, TensorInfo],
    kinds: dict[str, str],
    progress: Progress,
    sampled: Collection[str],
    *,
    nan_counts: bool,
) -> Iterator[tuple[str, TensorFacts]]:
    """Yield the facts of every tensor that is read whole, in the order of the files.

    Of the kinds ``sampled`` three rows are read, and all of a tensor whose three look odd. NaN in
    them looks odd where ``nan_counts``.
    """

    def is_read(kind: str) -> bool:
        return kind not in sampled

    infos = {name: tensors[name] for name in kinds}
    for name, info in infos.items():
        if kinds[name] == SCALE:  # of each output, and of its groups
            infos[name] = replace(info, shape=(math.prod(info.shape),))
    ordered = sorted(infos, key=lambda name: (infos[name].path.name, infos[name].offset))
    total = sum(infos[name].num_bytes for name in ordered if is_read(kinds[name]))
    progress.start("Checking weights", total, "bytes")
    for file, names in groupby(ordered, key=lambda name: infos[name].path.name):
        num_bytes = 0
        for name in names:
            if is_read(kinds[name]):
                facts = scan_tensor(infos[name])
                _name_outputs(facts, tensors[name], is_scale=kinds[name] == SCALE)
                yield name, facts
                num_bytes += infos[name].num_bytes
            elif not looks_filled(infos[name], may_be_nan=not nan_counts):
                facts = scan_tensor(infos[name])
                # Else NaN is found, with its row, when the layer is read.
                if nan_counts or not facts.broken_by:
                    yield name, facts
        progress.advance(num_bytes, file)
    progress.finish()


# ---- the policy --------------------------------------------------------------------------------


def _name_outputs(facts: TensorFacts, info: TensorInfo, *, is_scale: bool) -> None:
    """Let the rows that are named be those of the published linear."""

    def name_row(row: int) -> int:
        if is_scale and info.dtype == BLOCK_SCALES:  # [out, groups]
            row //= info.shape[1]
        elif is_scale:  # [out], [out, 1] or [groups, out]
            row %= max(1, info.shape[0] if info.shape[-1] == 1 else info.shape[-1])
        heads = info.heads if isinstance(info, GgufTensorInfo) else 0
        return parted_row(row, heads, info.shape[0]) if heads else row

    if facts.broken_row is not None:
        facts.broken_row = name_row(facts.broken_row)
    if facts.first_zero_row is not None:
        facts.first_zero_row = name_row(facts.first_zero_row)


def _find_idle(facts: dict[str, TensorFacts]) -> set[str]:
    """Return the linears that may be zero: outputs, and what feeds an output of zero."""
    idle = set[str]()
    for name, known in facts.items():
        block, _, linear = module_of(name).rpartition(".")
        if linear in _FEEDS and not name.endswith(".bias"):
            fed = _FEEDS[linear] if known.is_zero or known.is_constant else ()
            idle |= {f"{block}.{each}" for each in (linear, *fed)}
    return idle


def _fault_of(kind: str, facts: TensorFacts, *, is_idle: bool) -> tuple[Rule, str] | None:
    """Return why no model can work with a tensor, or None."""
    if facts.broken_by:
        return NOT_FINITE, f"row {facts.broken_row} holds {facts.broken_by}"
    if kind == SCALE:
        row = facts.first_zero_row
        return (ZERO_SCALE, f"row {row} is a scale of zero") if facts.num_zero_rows else None
    what = ""
    if facts.is_zero:
        what = "all of its values are zero"
    elif facts.is_constant and kind == CODES:
        what = "all of its codes are the same"
    # A vector of one value is what a model starts with.
    elif facts.is_constant and kind in (TABLE, LINEAR):
        return DEAD_TENSOR, "all of its values are the same number"
    may_be_zero = kind == BIAS or is_idle
    return (DEAD_TENSOR, what) if what and not may_be_zero else None


def _remark_of(name: str, kind: str, facts: TensorFacts) -> str:
    """Return what a user should know of a tensor that a model can work with, or nothing."""
    if facts.is_zero and kind == LINEAR:
        return (
            "all of its values are zero, so the part of the layer adds nothing. That is how block "
            "expansion begins a layer; otherwise it is a fault."
        )
    many = facts.num_zero_rows > _MANY_ZERO_ROWS * facts.num_rows
    inner = facts.num_zero_rows - facts.trailing_zero_rows
    if kind == TABLE and many or kind == LINEAR and (many or inner > _INNER_ZERO_ROWS):
        return (
            f"{facts.num_zero_rows:,} of its {facts.num_rows:,} rows are zero, the first is row "
            f"{facts.first_zero_row:,}. A download with holes looks so, and so does a pruned model."
        )
    return ""

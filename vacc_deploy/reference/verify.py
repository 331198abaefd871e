"""Prove on a CPU that a deployed directory computes what the float model computed.

Owns the command's way: check the files, read the text, compare, judge. ``float_model`` finds the
float model, ``source_check`` tells that it is another one. The numbers are those of ``compare`` and
``next_tokens``, the text's windows those of ``windows``, the verdict that of ``verdict``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vacc_deploy.assets import default_text_file
from vacc_deploy.checkpoint.attn_factor import describe_factors, read_alike, read_attn_factor
from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, model_name, read_manifest, stored_layout
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.permissions import real_path
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.activations import (
    AUTO,
    FLOAT,
    INT8,
    RoundingError,
    choose_activations,
    describe_rounding,
)
from vacc_deploy.reference.compare import LayerError, compare_on_tokens, same_weights
from vacc_deploy.reference.deployed import advise_restore, open_deployed
from vacc_deploy.reference.float_model import open_reference
from vacc_deploy.reference.limits import DEFAULT_LIMITS, Limits
from vacc_deploy.reference.next_tokens import NextTokenScores, figure_names
from vacc_deploy.reference.ranges import ActivationRange, audit_values, describe_ranges
from vacc_deploy.reference.source_check import explain_foreign
from vacc_deploy.reference.threads import threads_for
from vacc_deploy.reference.verdict import judge
from vacc_deploy.reference.windows import check_text, read_windows
from vacc_deploy.results import command, format_pairs, format_table
from vacc_deploy.text.token_contract import TokenContract, read_contract

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class VerifyResult:
    """The comparison of a deployed directory with its float model, and the verdict.

    Attributes:
        text: name of the text file.
        scores: None where files of the directory are damaged, so that nothing was compared.
        limits: what the verdict goes by; None where only the files were judged.
        activations: what the deployed model's linears were given, ``float`` or rounded to ``int8``.
        rounding: of each linear what rounding its inputs changed.
        audit: the sizes of the deployed model's activations, where they were asked for.
        same_weights: how the weight files of both are the same: ``linked``, ``equal`` or nothing.
        failures: a line for everything that failed.
        notes: what a reader of the figures should know.
        next_command: what to run after a passed comparison; nothing where that is not known.
        tokenizer: what transformers makes of the directory's tokenizer, where it was asked for.
        tokens: the windows that were compared, int64 [rows, seq]; ``to_dict`` leaves them out.
    """

    model: str
    deployed_dir: Path
    reference_dir: Path
    text: str
    limits: Limits | None
    scores: NextTokenScores | None = None
    layers: tuple[LayerError, ...] = ()
    activations: str = FLOAT
    rounding: tuple[RoundingError, ...] = ()
    audit: tuple[ActivationRange, ...] = ()
    same_weights: str = ""
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    next_command: str = ""
    tokenizer: TokenContract | None = None
    tokens: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool | None:
        """Whether something was checked and all of it was met; None where nothing was judged."""
        if self.failures:
            return False
        return True if self.limits and self.scores else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "model": self.model,
            "deployed_dir": str(self.deployed_dir),
            "reference_dir": str(self.reference_dir),
            "text": self.text,
            **(self.scores.to_dict() if self.scores else _NO_SCORES),
            "layers": [error.to_dict() for error in self.layers],
            "activations": self.activations,
            "rounding": [error.to_dict() for error in self.rounding],
            **audit_values(self.audit),
            "tokenizer": self.tokenizer and self.tokenizer.to_dict(),
            "same_weights": self.same_weights or None,
            "limits": self.limits and self.limits.to_dict(),
            "passed": self.passed,
            "failures": list(self.failures),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the figures, and the verdict last."""
        lines = [f"Checked the files of {self.deployed_dir}"]
        if self.scores:
            lines = [f"Verified {self.deployed_dir} against {self.reference_dir}"]
            lines += [self._describe_layers(), "", self._describe_scores(self.scores)]
            lines += ["", describe_rounding(self.rounding)] if self.rounding else []
            lines += ["", describe_ranges(self.audit)] if self.audit else []
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"Failed: {failure}" for failure in self.failures]
        if self.passed is None:
            lines.append("Not judged: no limits were set.")
        elif self.passed and self.scores and self.limits:
            lines.append(f"Passed: {self.limits.describe(self.scores)}")
            if self.next_command:
                lines.append(f"Next: {self.next_command}")
        return "\n".join(lines)

    def _describe_layers(self) -> str:
        """Return the layers' errors as a table, or one sentence where there is none."""
        if any(error.relative_error for error in self.layers):  # NaN counts as an error too
            rows = [(e.layer, f"{e.relative_error:.2e}", f"{e.sqnr_db:.1f}") for e in self.layers]
            return format_table(("layer", "relative error", "SQNR dB"), rows)
        is_equal = self.scores is not None and self.scores.max_kl == 0
        outputs = "the outputs are equal" if is_equal else "only the outputs of the head differ"
        what = {
            "linked": f"the same weights, in the same files (links); {outputs}",
            "equal": f"the same weights, in files with equal hashes; {outputs}",
        }.get(self.same_weights, f"the hidden states are equal; {outputs}")
        return f"All {len(self.layers)} layers: {what}."

    def _describe_scores(self, scores: NextTokenScores) -> str:
        both = f"{scores.perplexity_float:.4f} float, {scores.perplexity_deployed:.4f} deployed"
        mean = f"{scores.mean_kl:.6f} ± {scores.kl_standard_error:.6f} mean"
        pairs = [
            ("tokens compared", f"{scores.num_tokens:,} of {self.text}"),
            ("perplexity", f"{both} ({scores.perplexity_change:+.3%})"),
            ("KL(float ‖ deployed)", f"{mean}, {scores.max_kl:.4f} largest"),
            ("same top token", f"{scores.top1:.2%}"),
            ("activations", _ACTIVATIONS[self.activations]),
        ]
        return format_pairs(pairs)


_ACTIVATIONS = {FLOAT: "float32", INT8: "inputs of the linears rounded to int8, token by token"}
# The figures of a comparison that did not take place.
_NO_SCORES = dict.fromkeys((*figure_names(), "perplexity_change"))


def verify(
    deployed_dir: Path,
    *,
    reference_dir: Path | None = None,
    text_file: Path | None = None,
    max_tokens: int = 2048,
    sequence_length: int = 512,
    limits: Limits | None = DEFAULT_LIMITS,
    attn_factor: str | None = None,
    activations: str = AUTO,
    audit: bool = False,
    progress: Progress = SILENT,
) -> VerifyResult:
    """Compare a deployed directory with its float model on a text, and judge the result.

    Args:
        deployed_dir: a directory that ``quantize`` or ``prepare`` wrote. Where its files are not
            those that were written, nothing is compared.
        reference_dir: the float checkpoint; default the one its manifest names.
        text_file: UTF-8 text; default the text that the package carries.
        max_tokens, sequence_length: tokens of the text to use, and of one window of it.
        limits: what the result must meet; ``failures`` lists what it does not. None judges nothing
            but the files.
        attn_factor: ``multiply`` or ``ignore``, see ``models.rope``; default as the directory has.
        activations: ``int8`` to round the inputs of the deployed linears too, ``float``, ``auto``.
        audit: whether to measure the sizes of the activations too; fails where float16 overflows.
        progress: learns of every file, of every layer, then of every slice of the vocabulary.

    Raises:
        CheckpointError: a directory is damaged, the float model is another one than the source, or
            ``config_vacc.json`` describes another model; or one was changed meanwhile.
        CalibrationError: the text cannot be read or is too short.
        UsageError: no reference is known, it is the directory itself and there are limits, or its
            ``attn_factor`` leaves nothing to choose.
    """
    # First what costs little: the files of a large model take minutes to hash.
    path = text_file or default_text_file()
    check_text(path)
    reference = open_reference(reference_dir, deployed_dir)
    if limits:
        _refuse_itself(deployed_dir, reference)
    if attn_factor is not None:
        reference = read_attn_factor(reference, attn_factor)
    result = VerifyResult(
        model_name(deployed_dir), deployed_dir, reference.directory, path.name, limits
    )
    with unchanged(reference):
        deployed, damages = open_deployed(deployed_dir, reference, progress)
        if deployed is None or damages:
            return replace(result, failures=tuple(damages), notes=(advise_restore(deployed_dir),))
        if attn_factor is None:
            reference = read_alike(reference, deployed)
        # A verdict about files that are others by now is none.
        with unchanged(deployed):
            tokens, notes = read_windows(
                deployed, path, max_tokens=max_tokens, sequence_length=sequence_length
            )
            chosen = choose_activations(activations, deployed)
            result = replace(result, notes=tuple(notes), activations=chosen)
            return _compare(reference, deployed, tokens, result, progress, audit=audit)


def _refuse_itself(deployed_dir: Path, reference: Checkpoint) -> None:
    """Refuse to judge a directory by itself: it would pass whatever it holds.

    Raises:
        UsageError: it is its own float model.
    """
    layout = stored_layout(reference.directory, reference.config)
    # A quantized reference is refused with better advice.
    if not layout and real_path(deployed_dir) == real_path(reference.directory):
        raise UsageError(
            f"{deployed_dir} is compared with itself, which proves nothing. Give the float model "
            "that it was made from with --reference, or --no-limits for the figures alone."
        )


def _compare(
    reference: Checkpoint,
    deployed: Checkpoint,
    tokens: torch.Tensor,
    result: VerifyResult,
    progress: Progress,
    *,
    audit: bool,
) -> VerifyResult:
    """Return the result with the figures and the verdict."""
    if result.limits:
        layout = stored_layout(deployed.directory, deployed.config)
        result = replace(result, limits=result.limits.for_layout(layout))
    notes = [*result.notes, *dict.fromkeys((*reference.notes, *deployed.notes))]
    if factors := describe_factors(reference, deployed):
        notes.append(factors)
    has_manifest = read_manifest(deployed.directory) is not None
    if not has_manifest:
        notes.append(
            f"{deployed.directory} has no {MANIFEST_NAME}: its files could not be checked."
        )
    if foreign := explain_foreign(reference, deployed, has_manifest=has_manifest):
        notes.append(foreign)
        if has_manifest and result.limits:
            raise CheckpointError(f"{foreign} With --no-limits the two are compared all the same.")
    with threads_for(reference.config):
        found = compare_on_tokens(
            reference, deployed, tokens, progress, activations=result.activations, audit=audit
        )
    verdict = judge(reference, deployed, found, result.limits, progress)
    is_equal = not any(layer.relative_error for layer in found.layers)
    return replace(
        result,
        scores=found.scores,
        layers=tuple(found.layers),
        rounding=tuple(found.rounding),
        audit=tuple(found.ranges),
        same_weights=same_weights(reference, deployed, progress) if is_equal else "",
        failures=verdict.failures,
        notes=(*notes, *verdict.notes),
        tokens=tokens,
        next_command=_next_command(deployed.directory, deployed.config) if has_manifest else "",
    )


def add_tokenizer(result: VerifyResult) -> VerifyResult:
    """Return a result with what the installed transformers makes of the deployed tokenizer.

    It is no part of the verdict: ``check`` judges it.
    """
    try:
        contract = read_contract(result.deployed_dir)
    except CheckpointError as err:
        return replace(result, notes=(*result.notes, f"the tokenizer was not compared. {err}"))
    if contract.passed:
        return replace(result, tokenizer=contract)
    again = command("check", result.deployed_dir)
    note = f"the tokenizer contract does not hold in every case. {again} says where."
    return replace(result, tokenizer=contract, notes=(*result.notes, note))


# The total length that the vendor publishes and that yaml takes by default.
_COMPILED_LENGTH = 2048


def _next_command(deployed_dir: Path, config: ModelConfig) -> str:
    """Return the command that writes the compile file, where vamc can take this directory."""
    # Of the quantized layouts vamc takes its own, which is a float checkpoint; int8 is untried.
    # The lengths that yaml takes by default must fit, as those of every published model do.
    if config.quantization_format or config.max_position_embeddings < _COMPILED_LENGTH:
        return ""
    return command("yaml", deployed_dir, "--output", f"{real_path(deployed_dir).name}.yaml")

"""What a quantization is asked to do, checked before any work.

The one place for the defaults. The command line reads them here before torch is loaded, so imports
of more than names are inside functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vacc_deploy.datasets import list_kinds
from vacc_deploy.errors import UsageError
from vacc_deploy.formats.layouts import FORMATS, GGUF, GPTQ_ONE_GROUP, LAYOUTS, VAMC
from vacc_deploy.formats.q8_0 import F16, Q8_0
from vacc_deploy.solver import GPTQ, RTN

if TYPE_CHECKING:
    from vacc_deploy.datasets.sources import CalibrationSource

DATA, OWN = "data", "own"
FAST, FULL = "fast", "full"
# In what a GGUF file stores embedding and head: the option's values to types of the format.
GGUF_F16 = "f16"
GGUF_EMBEDDINGS = {GGUF_F16: F16, "q8_0": Q8_0}
_GGUF_PRE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# What --preset stands for: fields of QuantizeOptions. "light" is for a CPU that a person waits for:
# a tenth of the tokens, which is enough for the linears that "fast" calibrates up to a hidden size
# of 5,120 (four tokens an input); down_proj would need more.
PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "light": {"num_samples": 48, "sequence_length": 512, "effort": FAST},
}


@dataclass(frozen=True)
class QuantizeOptions:
    """What shapes the result of ``quantize``.

    Attributes:
        method: ``gptq`` (needs sources) or ``rtn``.
        sources: calibration files, mixed by weight.
        num_samples: number of calibration rows.
        sequence_length: tokens in each calibration row.
        seed: random seed for choosing calibration documents.
        act_order: solve the columns with the largest inputs first.
        answers: ``data`` to calibrate on the answers in the files, ``own`` on those that the float
            model writes.
        max_answer_tokens: length at which an own answer is cut off.
        answers_cache: directory for own answers; None for the user's cache. It does not shape the
            result.
        evaluation_share: fraction of each file's documents set aside for judging afterwards.
        formats: names of the layouts to write, each once: what ``--format`` takes, or
            ``gptq-one-group``, which stands for ``--format gptq --group-size -1``.
        effort: ``full``, or ``fast``, which rounds down_proj and carries no float states.
        shrinkage: fraction by which the off-diagonals of each Hessian shrink, 0 to 1.
        dampening_frac: first dampening to try, a fraction of the Hessian's mean diagonal.
        scale_search: choose each row's scale by its expected error.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        compute_dtype: ``float32``, ``bfloat16``, or ``auto`` for what is fast there.
        profile: wait for the device at the edges of every phase, so that each has its own seconds.
            It does not shape the result.
        num_float_rows: rows that go through the float layers too, the held-out ones among them;
            None for the number that ``layer_walk.num_float_rows`` chooses.
        gguf_embeddings: ``f16`` or ``q8_0``, for embedding and head of the format ``gguf``; None
            for the first.
        gguf_pre: llama.cpp's name of the pre-tokenizer in that format; empty to find it.
    """

    method: str
    sources: tuple[CalibrationSource, ...] = ()
    num_samples: int = 128
    sequence_length: int = 2048
    seed: int = 0
    act_order: bool = True
    answers: str = DATA
    max_answer_tokens: int = 512
    answers_cache: Path | None = None
    evaluation_share: float = 0.0
    formats: tuple[str, ...] = (VAMC,)
    effort: str = FULL
    shrinkage: float = 0.3
    dampening_frac: float = 0.1
    scale_search: bool = True
    device: str = "cpu"
    compute_dtype: str = "auto"
    profile: bool = False
    num_float_rows: int | None = None
    gguf_embeddings: str | None = None
    gguf_pre: str = ""

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: says which.
        """
        are_known = set(self.formats) <= set(LAYOUTS)
        if not self.formats or not are_known or len(set(self.formats)) < len(self.formats):
            raise UsageError(
                f"The formats are {', '.join(self.formats) or 'none'}; expected one or more of "
                f"{', '.join((*FORMATS, GPTQ_ONE_GROUP))}, each once."
            )
        if self.method == GPTQ and not self.sources:
            raise UsageError(
                "--method gptq needs text to calibrate on: give --calibration NAME=PATH "
                f"({list_kinds()}), or use --method rtn."
            )
        if self.method == RTN and self.sources:
            raise UsageError("--method rtn uses no calibration data. Leave --calibration out.")
        if self.method == GPTQ and self.num_samples < 2:
            raise UsageError(
                "--num-samples must be at least 2: one row in ten, and at least one, is held out "
                "to compare gptq with rounding."
            )
        self._check_solver()
        self._check_answers()
        self._check_gguf()

    def _check_solver(self) -> None:
        if self.effort not in (FAST, FULL):
            raise UsageError(f"--effort is {self.effort!r}, expected {FAST} or {FULL}.")
        if not 0 <= self.shrinkage <= 1:
            raise UsageError(f"--shrinkage is {self.shrinkage}, expected a number from 0 to 1.")
        # factorize multiplies it by ten until it is 1: from 0 it would try for ever.
        if not 0 < self.dampening_frac <= 1:
            raise UsageError(
                f"--dampening is {self.dampening_frac}, expected a number above 0, up to 1."
            )

    def _check_answers(self) -> None:
        if self.answers not in (DATA, OWN):
            raise UsageError(f"--answers is {self.answers!r}, expected {DATA} or {OWN}.")
        if self.answers == DATA:
            return
        from vacc_deploy.datasets.sources import CONVERSATION_KINDS

        kinds = ", ".join(CONVERSATION_KINDS)
        if not any(source.kind in CONVERSATION_KINDS for source in self.sources):
            raise UsageError(
                f"--answers {OWN} needs questions to answer: give --calibration of a kind that has "
                f"them ({kinds}), or leave --answers out."
            )

    def _check_gguf(self) -> None:
        if self.gguf_embeddings not in (None, *GGUF_EMBEDDINGS):
            raise UsageError(
                f"--gguf-embeddings is {self.gguf_embeddings!r}, expected "
                f"{' or '.join(GGUF_EMBEDDINGS)}."
            )
        if self.gguf_pre and not _GGUF_PRE.fullmatch(self.gguf_pre):
            raise UsageError(
                f"--gguf-pre is {self.gguf_pre!r:.80}, expected a name of llama.cpp, such as qwen2."
            )
        if GGUF in self.formats:
            from vacc_deploy.gguf_file.package import check_package

            check_package()
        elif self.gguf_pre or self.gguf_embeddings is not None:
            flag = "--gguf-pre" if self.gguf_pre else "--gguf-embeddings"
            raise UsageError(f"{flag} is of --format {GGUF}. Add that format, or leave it out.")

    @property
    def embedding_type(self) -> str:
        """Type of embedding and head in a GGUF file."""
        return GGUF_EMBEDDINGS[self.gguf_embeddings or GGUF_F16]

    def _gguf_values(self) -> dict[str, Any]:
        """Return the options of a GGUF file, where one is written."""
        if GGUF not in self.formats:
            return {}
        given = {"gguf_pre": self.gguf_pre} if self.gguf_pre else {}
        return {"gguf_embeddings": self.gguf_embeddings or GGUF_F16, **given}

    def to_dict(self) -> dict[str, Any]:
        """Return the options for the report and the manifest."""
        from vacc_deploy.calibration.split import HELD_OUT_SHARE

        if self.method == RTN:
            # Nothing else shapes rounded codes, so a change of the rest refuses no --resume.
            return {"method": RTN, **self._stated_formats(), **self._gguf_values()}
        # Without device and compute_dtype: ``identify`` records what "auto" has become.
        values: dict[str, Any] = {
            "method": self.method,
            **self._stated_formats(),
            **self._gguf_values(),
            "num_samples": self.num_samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "act_order": self.act_order,
            "held_out_share": HELD_OUT_SHARE,
            "evaluation_share": self.evaluation_share,
            "answers": self.answers,
            "effort": self.effort,
            "shrinkage": self.shrinkage,
            "dampening_frac": self.dampening_frac,
            "scale_search": self.scale_search,
        }
        if self.num_float_rows is not None:
            values["num_float_rows"] = self.num_float_rows
        return values | (
            {"max_answer_tokens": self.max_answer_tokens} if self.answers == OWN else {}
        )

    def _stated_formats(self) -> dict[str, Any]:
        """Return the layouts by name, with the columns of a group, which 0.1.0 wrote as one."""
        configs = (LAYOUTS[name].config or {} for name in self.formats)
        sizes = [config["group_size"] for config in configs if "group_size" in config]
        # A directory has one layout of GPTQ; a library call may ask for both.
        return {"formats": list(self.formats)} | ({"group_size": sizes[0]} if sizes else {})

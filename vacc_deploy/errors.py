"""The exceptions a user can meet.

    VaccDeployError            exit code 1: the data or the environment is at fault
    ├── UsageError             exit code 2: options that contradict each other
    ├── UnsupportedModelError  an unknown name, or an architecture we do not handle
    ├── CheckpointError        a weight directory is incomplete, damaged or contradicts itself
    │   └── TokenConflictError     a token has two ids, or an id two tokens
    ├── PromptError            a file of prompts is missing, damaged or too large
    ├── CalibrationError       calibration data is missing, damaged or too short
    ├── QuantizationError      a weight or a statistic cannot be quantized
    ├── CompileFileError       a vamc YAML breaks a rule of the compiler
    ├── ExportError            a model cannot be exported as an ONNX graph
    ├── OutputError            an output directory cannot be written
    ├── ProcessError           the process for tokenizers and templates cannot work
    ├── TooLongError           a text is too long to be made tokens
    ├── RankLostError          another process of a run on several ranks is gone
    └── StoppedError           exit code 128 + signal: the command was interrupted

A check that ran and failed is no error but a result: its command prints it and exits with 3.
A message says what is wrong, where, what was got and expected, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_LISTED = 10
# Characters of a name, or of what a library says, that a message shows.
NAME_SHOWN, REASON_SHOWN = 80, 300


class VaccDeployError(Exception):
    """Base of every error that is not a programming mistake.

    Attributes:
        exit_code: of the command that the error ends.
        hint: what to do next, where only somebody above the raiser knows it; printed behind the
            message.
        problems: the single problems that the message lists, for ``check``; empty where the
            message is one problem.
    """

    exit_code = 1
    hint = ""
    problems: Sequence[str] = ()

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class UsageError(VaccDeployError):
    """Options that contradict each other or lack one another."""

    exit_code = 2


class UnsupportedModelError(VaccDeployError):
    """A model name or an architecture that this tool does not handle."""


class CheckpointError(VaccDeployError):
    """A checkpoint directory is incomplete, damaged or contradicts itself."""


class TokenConflictError(CheckpointError):
    """The tokenizer's files give one token two ids, or one id two tokens.

    Never to be passed over: the weights know one of the two only.
    """


class PromptError(VaccDeployError):
    """A file of prompts is missing, damaged or too large."""


class CalibrationError(VaccDeployError):
    """Calibration data is missing, damaged or too short."""


class QuantizationError(VaccDeployError):
    """A weight or a statistic cannot be quantized.

    The mathematics knows the reason and perhaps the row. Who called it adds what it knows of the
    place with ``locate`` and raises the same error again; the sentence is formed here only.

    Attributes:
        reason: what is wrong, a clause without a full stop.
        row: of the tensor, or None.
        tensor: its full name, or what else is meant, for example ``The inputs of ...``.
        file: where the tensor lies.
    """

    def __init__(self, reason: str, *, row: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.row = reason, row
        self.tensor = self.file = self.advice = ""

    def locate(
        self, tensor: str = "", *, first_row: int = 0, file: str = "", advice: str = ""
    ) -> None:
        """Add what is known of the place; what is there already stays.

        Args:
            tensor: full name.
            first_row: the index in the whole tensor of what was row 0 so far.
            file: where the tensor lies.
            advice: what to do next, a sentence.
        """
        if self.row is not None:
            self.row += first_row
        self.tensor, self.file = self.tensor or tensor, self.file or file
        self.advice = self.advice or advice

    def __str__(self) -> str:
        """Return, for example, ``a.weight in /m/model.safetensors: row 4 holds NaN. Advice.``."""
        where = f"{self.tensor} in {self.file}" if self.file else self.tensor
        what = self.reason if self.row is None else f"row {self.row} {self.reason}"
        sentence = f"{where}: {what}." if where else f"{what}."
        return f"{sentence} {self.advice}" if self.advice else sentence


class CompileFileError(VaccDeployError):
    """A vamc compile file breaks a rule of the compiler."""


class ExportError(VaccDeployError):
    """A model cannot be exported as an ONNX graph."""


class OutputError(VaccDeployError):
    """An output directory exists already or cannot be written."""


class ProcessError(VaccDeployError):
    """The process in which tokenizers and chat templates run cannot start, or is ended by others.

    No file of the user is at fault.
    """


class TooLongError(VaccDeployError):
    """A text or a conversation is too long to be made tokens at once.

    Attributes:
        problem: how long it is and how long it may be, a sentence.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem} Give a shorter text.")
        self.problem = problem


class RankLostError(VaccDeployError):
    """Another process of a run on several ranks has failed or cannot be reached."""


class StoppedError(VaccDeployError):
    """The command was interrupted by a signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def shorten(text: object, limit: int = NAME_SHOWN) -> str:
    """Return what a stranger wrote as a message shows it: cut, and in one line.

    Nothing in it can turn the direction of writing or look like a line of our own.
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def name_some(names: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Return ``names`` in one line, cut at ``limit`` with "and N more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def list_problems(problems: Iterable[str], *, limit: int = MAX_LISTED) -> str:
    """Return ``problems`` as indented lines, sorted, cut at ``limit`` with "and N more"."""
    ordered = sorted(problems)
    lines = [f"  - {problem}" for problem in ordered[:limit]]
    if len(ordered) > limit:
        lines.append(f"  - and {len(ordered) - limit} more")
    return "\n".join(lines)


def add_sentence(message: str, sentence: str) -> str:
    """Return ``message`` and what follows it: on a line of its own behind a line with a command."""
    is_command = message.rpartition("\n")[2].startswith("  ")
    return f"{message}{chr(10) if is_command else ' '}{sentence}".rstrip()

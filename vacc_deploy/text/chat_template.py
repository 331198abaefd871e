"""Render a checkpoint's chat template: a stranger's program, run in jinja's sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from vacc_deploy.errors import CheckpointError

MAX_TEMPLATE_CHARS = 1 << 18
MAX_RENDERED_CHARS = 1 << 26
# Llama 3 templates print a date. A fixed one (the default of those templates) keeps the same
# inputs giving the same ids on every day.
TEMPLATE_DATE = datetime(2024, 7, 26)
_SIZED = (str, list, tuple)
# What a template can raise beside jinja's own errors: a wrong operand, a missing key, too deep.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    SyntaxError,
    RecursionError,
    MemoryError,
)


class _GenerationBlock(Extension):
    """Accepts ``{% generation %}`` blocks, which mark answers for training, as plain content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _TemplateCode(CodeGenerator):
    """Compiles ``~`` to a call that is bounded; jinja intercepts no other operator but this way."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja's
        self.write("environment.concatenate((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")


class _TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of a stranger's template.

    The operators ``+``, ``*`` and ``~`` make no text or list longer than ``MAX_RENDERED_CHARS``,
    and the sandbox bounds one ``range``. Not bounded are time (loops may be nested) and what
    filters, ``%`` and the methods of a text build.
    """

    code_generator_class = _TemplateCode
    intercepted_binops = frozenset(("+", "*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute within bounds; chat templates have no use for powers."""
        if operator == "**":
            raise SecurityError("the operator ** is not available in a chat template")
        if operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            _check_length(len(left) + len(right))
        for text, count in ((left, right), (right, left)):
            if operator == "*" and isinstance(text, _SIZED) and isinstance(count, int):
                _check_length(len(text) * count)
        return super().call_binop(context, operator, left, right)

    def concatenate(self, operands: Sequence[Any]) -> str:
        """Return the operands of ``~`` as one text."""
        texts = [str(operand) for operand in operands]
        _check_length(sum(len(text) for text in texts))
        return "".join(texts)


def _check_length(length: int) -> None:
    if length > MAX_RENDERED_CHARS:
        raise SecurityError(f"a text or list of more than {MAX_RENDERED_CHARS:,} items")


class ChatTemplate:
    """A compiled chat template. ``path`` is the file it came from, for messages."""

    def __init__(self, source: str, path: Path) -> None:
        """Compile ``source`` in the sandbox.

        Raises:
            CheckpointError: the template is too long or does not compile.
        """
        self.path = path
        if len(source) > MAX_TEMPLATE_CHARS:
            raise CheckpointError(
                f"The chat template in {path} holds {len(source):,} characters, expected at most "
                f"{MAX_TEMPLATE_CHARS:,}. Restore the file from the model's original repository."
            )
        environment = _TemplateEnvironment(
            # As transformers sets them: templates are written for its line ends.
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
        )
        environment.filters["tojson"] = _to_json
        # The two functions that transformers offers to a template.
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
        try:
            self._template = environment.from_string(source)
        except _TEMPLATE_ERRORS as err:
            self._fail("does not compile", err)

    def render(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> str:
        """Return the conversation as one text.

        Raises:
            CheckpointError: the template fails, leaves the sandbox or writes without end.
        """
        pieces, num_chars = [], 0
        try:
            plain = [dict(message) for message in messages]
            # Piece by piece: a template that writes without end is stopped on its way.
            for piece in self._template.generate(messages=plain, **variables):
                num_chars += len(piece)
                if num_chars > MAX_RENDERED_CHARS:
                    raise SecurityError(f"more than {MAX_RENDERED_CHARS:,} characters written")
                pieces.append(piece)
        except _TEMPLATE_ERRORS as err:
            self._fail("cannot render a conversation", err)
        return "".join(pieces)

    def _fail(self, what: str, err: BaseException) -> NoReturn:
        line = getattr(err, "lineno", None)
        place = f" (line {line})" if line else ""
        raise CheckpointError(
            f"The chat template in {self.path} {what}{place}: {type(err).__name__}: {err}. "
            "Restore the file from the model's original repository."
        ) from err


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which chat templates do not expect.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

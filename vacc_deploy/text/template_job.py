"""Renders a chat template in the process of ``child``: a stranger's program, in jinja's sandbox.

Time and memory are bounded by that process, whatever the template does. What is left to do here:
a template gets what published templates use and no more, and no text depends on anything but the
template and the conversation.
"""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, LoopContext, Macro, TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from markupsafe import Markup

# Counted in published templates: see docs/security.md, and the table in tests/text.
FILTERS = (
    *("capitalize", "count", "d", "default", "dictsort", "first", "indent", "int", "items"),
    *("join", "last", "length", "list", "lower", "map", "reject", "rejectattr", "replace", "safe"),
    *("select", "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper"),
)
TESTS = (
    *("boolean", "defined", "equalto", "false", "in", "iterable", "mapping", "none", "sequence"),
    *("string", "true", "undefined"),
    # What a comparison is called, and the kinds of numbers: neither does more than the above.
    *("==", "eq", "!=", "ne", ">", "gt", ">=", "ge", "<", "lt", "<=", "le"),
    *("float", "integer", "number", "even", "odd", "divisibleby"),
)
GLOBALS = ("dict", "namespace", "range")
# Llama 3 templates print a date. A fixed one (the default of those templates) keeps the same
# inputs giving the same ids on every day.
TEMPLATE_DATE = datetime(2024, 7, 26)
_MAX_HELD = 4  # compiled templates
_held: dict[str, jinja2.Template] = {}


def handle(request: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Compile or render; the request says which.

    ``load`` holds the template in ``body``. ``render`` takes JSON: messages and variables.
    """
    try:
        return _handle(request, body)
    except (MemoryError, RecursionError):
        raise
    except Exception as err:
        # Where the template's own code failed: jinja puts its lines into the traceback. Walked, not
        # extracted: that would open the files of all the other code.
        steps = traceback.walk_tb(err.__traceback__)
        lines = [line for frame, line in steps if frame.f_code.co_filename == "<template>"]
        line = next(reversed(lines), None)
        if isinstance(err, jinja2.TemplateSyntaxError):
            line = err.lineno
        raise JobError(_say(err), line) from err


class JobError(Exception):
    """What a template raised, as a text, and the line of it."""

    def __init__(self, text: str, line: int | None) -> None:
        super().__init__(text)
        self.line = line


class _RefusedError(SecurityError):
    """A template asks for what it does not get; the text is a clause about it."""


def _say(err: Exception) -> str:
    """Return what went wrong as a clause, without a full stop."""
    text = str(err).strip().removesuffix(".")
    if isinstance(err, _RefusedError):
        return text
    if isinstance(err, SecurityError):
        return f"it asks for what no template gets: {text}"
    if isinstance(err, jinja2.UndefinedError):
        return f"it uses a value that is not there: {text}"
    if isinstance(err, jinja2.TemplateSyntaxError):
        return f"jinja says: {text}"
    if isinstance(err, jinja2.TemplateError):
        return f"it refuses the conversation: {text}"
    return f"an operation fails: {text} ({type(err).__name__})"


class _NoFiles(jinja2.BaseLoader):
    """Stands for the files that a template might include."""

    def get_source(self, environment: jinja2.Environment, template: str) -> NoReturn:
        """Refuse."""
        raise _RefusedError("it includes another file, which is not supported")


def _handle(request: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    key = request["key"]
    if request["op"] == "load":
        _held[key] = _environment().from_string(body.decode("utf-8", "surrogatepass"))
        while len(_held) > _MAX_HELD:
            del _held[next(iter(_held))]
        return {}, b""
    if key not in _held:
        return {"unknown": True}, b""
    return {}, _render(_held[key], json.loads(body), request["limit"])


def _render(template: jinja2.Template, variables: Mapping[str, Any], limit: int) -> bytes:
    pieces, size = list[bytes](), 0
    # Piece by piece: a template that writes without end is stopped on its way.
    for piece in template.generate(**variables):
        data = piece.encode("utf-8", "surrogatepass")
        size += len(data)
        if size > limit:
            raise _RefusedError(f"it writes more than {limit:,} bytes for it")
        pieces.append(data)
    return b"".join(pieces)


class _Nameless:
    """A value whose text would be an address in memory: it can be used, and not be written."""

    def __str__(self) -> str:
        raise _RefusedError("it writes a method or an iterator, which has no text of its own")

    __repr__ = __str__

    def __format__(self, _: str) -> str:
        return str(self)


class _Method(_Nameless):
    """A method of a text or a list, or a function that is offered."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)


class _Iterator(_Nameless):
    """What a filter such as ``map`` returns."""

    def __init__(self, values: Iterator[Any]) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._values)


# Whose text follows from what they hold. A class that is not among them may write its address.
_WRITTEN = frozenset(
    (str, int, float, complex, bool, bytes, type(None), list, tuple, dict, range, Markup)
) | {
    *(MappingProxyType, type({}.keys()), type({}.values()), type({}.items())),
    *(jinja2.Undefined, LoopContext, Macro, Namespace, TemplateReference),
    *(_Method, _Iterator),
}
_WRITTEN_CLASSES = (dict, Namespace)
# What a text in the form `%(name)s` gets of `self` passes by the sandbox.
for _name in ("__str__", "__repr__", "__format__"):
    setattr(BlockReference, _name, getattr(_Nameless, _name))


def _settle(value: Any) -> Any:
    """Return ``value`` in a form whose text is the same in every process."""
    if type(value) in _WRITTEN or any(value is one for one in _WRITTEN_CLASSES):
        return value
    if isinstance(value, (set, frozenset)):
        raise _RefusedError("it makes a set, which has no order of its own")
    if isinstance(value, Iterator):
        return _Iterator(value)
    if callable(value):
        return _Method(value)
    raise _RefusedError(f"it uses a {type(value).__name__}, which has no text of its own")


def _settled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter whose results are settled; jinja's marks on it are kept."""

    def settle(*args: Any, **kwargs: Any) -> Any:
        return _settle(function(*args, **kwargs))

    return functools.update_wrapper(settle, function)


class _Code(CodeGenerator):
    """Computes nothing while a template is compiled: a constant may take all memory."""

    def _output_child_to_const(self, node: jinja2.nodes.Expr, frame: Frame, finalize: Any) -> str:
        if isinstance(node, jinja2.nodes.TemplateData):
            return super()._output_child_to_const(node, frame, finalize)
        raise jinja2.nodes.Impossible


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of a stranger's template."""

    code_generator_class = _Code
    # A difference of the keys of two objects is a set.
    intercepted_binops = frozenset(("-",))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute; a method has no text."""
        return _settle(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an entry, or else an attribute."""
        return _settle(super().getitem(obj, argument))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what is offered."""
        return _settle(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Subtract."""
        return _settle(super().call_binop(context, operator, left, right))


class _GenerationBlock(Extension):
    """Accepts ``{% generation %}`` blocks, which mark answers for training, as plain content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> _Environment:
    environment = _Environment(
        # As transformers sets them: templates are written for its line ends.
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
        optimized=False,
        loader=_NoFiles(),
    )
    filters = {name: environment.filters[name] for name in FILTERS if name != "tojson"}
    environment.filters = {name: _settled(each) for name, each in filters.items()}
    environment.filters["tojson"] = _to_json
    environment.tests = {name: environment.tests[name] for name in TESTS}
    environment.globals = {name: _settle(environment.globals[name]) for name in GLOBALS}
    # The two functions that transformers offers to a template.
    environment.globals["raise_exception"] = _Method(_raise_exception)
    environment.globals["strftime_now"] = _Method(TEMPLATE_DATE.strftime)
    return environment


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

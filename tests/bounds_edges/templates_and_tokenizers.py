"""The bounds of chat templates and of the tokenizers library, each tried at its edge."""

import json
from pathlib import Path
from unittest.mock import patch

from tokenizer_builders import build_backend, tokenizer_config, write_tokenizer

from vacc_deploy.bounds import (
    CONVERSATION_BYTES,
    RENDERED_BYTES,
    RENDERED_FREE_BYTES,
    RENDERED_TIMES,
    TEMPLATE_CHARACTERS,
    TEMPLATE_CPU_SECONDS,
    TEMPLATE_MEMORY,
    TOKENIZED_BYTES,
    TOKENIZER_CPU_SECONDS,
)
from vacc_deploy.text import chat_template, worker
from vacc_deploy.text.chat_template import ChatTemplate
from vacc_deploy.text.tokenizer import Tokenizer

LOOP = "{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
MIB = 1 << 20


def render(source, content="", spend=0.0):
    template = ChatTemplate(source, Path("chat_template.jinja"))
    template._session._seconds -= spend
    return template.render([{"role": "user", "content": content}], {})


def load(tmp_path, **changes):
    write_tokenizer(tmp_path, config=tokenizer_config())
    document = {**json.loads(build_backend().to_str()), **changes}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    return Tokenizer.from_dir(tmp_path)


def grow(times):
    pattern = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [pattern] * times}


def template_characters(_, over):
    ChatTemplate("x" * (TEMPLATE_CHARACTERS + over), Path("t"))


def template_cpu_seconds(_, over):
    # All but a second was used before.
    assert render(LOOP if over else "x", spend=TEMPLATE_CPU_SECONDS - 1) == "x"


def template_cpu_per_mb(_, over):
    # A quarter of a MB has a second of its own.
    assert render(LOOP if over else "x", "y" * 250_000, spend=TEMPLATE_CPU_SECONDS) == "x"


def template_memory(_, over):
    size = TEMPLATE_MEMORY + (MIB if over else -16 * MIB)
    assert render(f"{{{{ 'x'.center({size}) | length }}}}") == str(size)


def conversation_bytes(_, over):
    around = len(json.dumps({"messages": [{"role": "user", "content": ""}]}))
    assert render("x", "y" * (CONVERSATION_BYTES - around + over)) == "x"


def rendered_bytes(_, over):
    source = f"{{{{ 'x' * {RENDERED_BYTES} }}}}{'x' * over}"
    assert len(render(source, "y" * (RENDERED_BYTES // RENDERED_TIMES))) == RENDERED_BYTES


def rendered_times(content):
    """Return an edge: what may be written for a conversation."""

    def edge(_, over):
        size = len(json.dumps({"messages": [{"role": "user", "content": content}]}))
        most = RENDERED_FREE_BYTES + RENDERED_TIMES * size
        assert len(render(f"{{{{ 'x' * {most + over} }}}}", content)) == most

    return edge


def tokenized_bytes(tmp_path, over):
    assert load(tmp_path).encode("\u00e9" * (TOKENIZED_BYTES // 2) + "a" * over, add_bos=False)


def worker_memory(_, over):
    # A lower one: the real one is more than a test should take.
    size = 8 * MIB if not over else 900 * MIB
    with (
        patch.object(worker, "WORKER_MEMORY", 512 * MIB),
        patch.object(chat_template, "TEMPLATE_MEMORY", 8 << 30),
    ):
        assert render(f"{{{{ 'x'.center({size}) | length }}}}") == str(size)


def search(tmp_path, over, spend):
    """Let a pattern search for some tens of seconds, or not at all."""
    pattern = {"Regex": r"(?=(a+))\1b" if over else "b"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    tokenizer = load(tmp_path, pre_tokenizer=split)
    tokenizer._backend._session._seconds -= spend
    assert tokenizer.encode("a" * 250_000, add_bos=False)


def tokenizer_cpu_seconds(tmp_path, over):
    search(tmp_path, over, TOKENIZER_CPU_SECONDS - 1)


def tokenizer_cpu_per_mb(tmp_path, over):
    search(tmp_path, over, TOKENIZER_CPU_SECONDS)


def tokenizer_memory(tmp_path, over):
    # A letter to a hundred, or to a thousand million.
    assert load(tmp_path, normalizer=grow(9 if over else 2)).encode("a", add_bos=False)


def tokenizer_memory_times(tmp_path, over):
    # 20,000 letters to as many, or to twenty million.
    assert load(tmp_path, normalizer=grow(3 if over else 0)).encode("a" * 20_000, add_bos=False)


EDGES = {
    "CONVERSATION_BYTES": conversation_bytes,
    "RENDERED_BYTES": rendered_bytes,
    "RENDERED_FREE_BYTES": rendered_times(""),
    "RENDERED_TIMES": rendered_times("y" * 10_000),
    "TEMPLATE_CHARACTERS": template_characters,
    "TEMPLATE_CPU_PER_MB": template_cpu_per_mb,
    "TEMPLATE_CPU_SECONDS": template_cpu_seconds,
    "TEMPLATE_MEMORY": template_memory,
    "TOKENIZED_BYTES": tokenized_bytes,
    "TOKENIZER_CPU_PER_MB": tokenizer_cpu_per_mb,
    "TOKENIZER_CPU_SECONDS": tokenizer_cpu_seconds,
    "TOKENIZER_MEMORY": tokenizer_memory,
    "TOKENIZER_MEMORY_TIMES": tokenizer_memory_times,
    "WORKER_MEMORY": worker_memory,
}

"""The Modelfile beside a GGUF file, with which ``ollama create`` takes it.

Ollama does not run the chat template of a GGUF file. It compares its text with the templates that
it knows itself, and takes the nearest; where none is near, a prompt stands alone. So the template
is written here in Ollama's language, where the checkpoint's own one writes turns in a known form.
That is found by rendering a conversation, not by the template's text.

Source: docs/modelfile.md and ``template/template.go`` of Ollama.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vacc_deploy.errors import CheckpointError
from vacc_deploy.gguf_file.sampling import SAMPLERS, stated_sampling
from vacc_deploy.gguf_file.tokens import GgufTokens

MODELFILE = "Modelfile"
_SYSTEM, _ASK, _ANSWER, _AGAIN = "probe-s", "probe-q", "probe-a", "probe-r"
_HEADER = (
    "# To change anything, copy this file first (cp Modelfile MyModelfile): vacc-deploy compares "
    "it with what it wrote."
)


@dataclass(frozen=True)
class Style:
    """How a family writes turns.

    Attributes:
        system, user, answer: in front of a turn, and behind it. What is in front of an answer
            asks for one.
        defaults: how the family's makers sample, where the checkpoint does not say it.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    answer: tuple[str, str]
    defaults: Mapping[str, float]

    def render(self, *, system: str) -> str:
        """Return the probe's conversation."""
        parts = [(self.system, system)] if system else []
        parts += [(self.user, _ASK), (self.answer, _ANSWER), (self.user, _AGAIN)]
        turns = "".join(f"{start}{text}{end}" for (start, end), text in parts)
        return turns + self.answer[0]

    def template(self, opening: str) -> str:
        """Return Ollama's template; ``opening`` is what an answer begins with.

        Its marks trim no blanks (``{{-`` would): those of the turns count.
        """
        return (
            f"{{{{ if .System }}}}{self.system[0]}{{{{ .System }}}}{self.system[1]}{{{{ end }}}}"
            "{{ range $i, $_ := .Messages }}"
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "user" }}}}{self.user[0]}{{{{ .Content }}}}{self.user[1]}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.answer[0]}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{self.answer[1]}{{{{ end }}}}"
            "{{ end }}"
            f'{{{{ if and $last (ne .Role "assistant") }}}}{self.answer[0]}{opening}{{{{ end }}}}'
            "{{ end }}"
        )


# DeepSeek's card of R1: temperature 0.5 to 0.7 (0.6), top_p 0.95.
_R1_SAMPLING = {"temperature": 0.6, "top_p": 0.95}
_STYLES = (
    Style(
        system=("", ""),
        user=("<｜User｜>", ""),
        answer=("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        defaults=_R1_SAMPLING,
    ),
    Style(
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        answer=("<|im_start|>assistant\n", "<|im_end|>\n"),
        defaults={},
    ),
    Style(
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        answer=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        defaults={},
    ),
)


@dataclass(frozen=True)
class _Found:
    """A style, what an answer begins with, and the system prompt where none is given."""

    style: Style
    opening: str
    system: str


def write_modelfile(
    file_name: str, tokens: GgufTokens, end_ids: Sequence[int], generation: Mapping[str, Any]
) -> str:
    """Return the text of a Modelfile.

    Args:
        file_name: of the GGUF file beside it.
        tokens: the tokenizer.
        end_ids: ids that end an answer.
        generation: the values of ``generation_config.json``.
    """
    found = _find_style(tokens)
    lines = [_HEADER, f"FROM ./{file_name}"]
    if found:
        lines.append(f'TEMPLATE """{found.style.template(found.opening)}"""')
        lines += [f'SYSTEM """{found.system}"""'] if found.system else []
    else:
        why = "the turns of this chat template are in no form that is known here. Ollama takes the "
        why += "nearest of its own, or the bare prompt."
        if not tokens.template:
            state = "can be used" if tokens.template_problem else "is there"
            why = f"no chat template {state}. Ollama takes the bare prompt."
        lines.append(f"# No TEMPLATE: {why}")
    sampling = dict(found.style.defaults) if found else {}
    sampling |= stated_sampling(generation)
    lines += [f"PARAMETER {SAMPLERS[key].parameter} {value!r}" for key, value in sampling.items()]
    ends = [tokens.tokens[end_id] for end_id in dict.fromkeys(end_ids)]
    lines += [f'PARAMETER stop "{end}"' for end in ends if _is_plain(end)]
    return "\n".join(lines) + "\n"


def _is_plain(text: str) -> bool:
    """Return whether a text can stand in a Modelfile, and in Ollama's template, as it is."""
    return text.isprintable() and not any(mark in text for mark in ('"', "\\", "{{", "}}"))


def _find_style(tokens: GgufTokens) -> _Found | None:
    """Return in which form the chat template writes a conversation; None for none that is known."""
    if not tokens.template:
        return None
    try:
        given, bare = _render(tokens, _SYSTEM), _render(tokens, "")
    except CheckpointError:  # it takes no system prompt, or none of these turns
        return None
    for style in _STYLES:
        expected = style.render(system=_SYSTEM)
        opening = given.removeprefix(expected)
        if not given.startswith(expected) or not _is_plain(opening.replace("\n", "")):
            continue
        turns = style.render(system="") + opening
        system = bare.removesuffix(turns)
        if not bare.endswith(turns):
            continue
        start, end = style.system
        if system:
            if not (start and system.startswith(start) and system.endswith(end)):
                continue
            system = system.removeprefix(start).removesuffix(end)
        if '"""' not in system:
            return _Found(style, opening, system)
    return None


def _render(tokens: GgufTokens, system: str) -> str:
    """Return the probe's conversation, without the BOS, which llama.cpp puts there itself."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [
        {"role": "user", "content": _ASK},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _AGAIN},
    ]
    text = tokens.tokenizer.render_chat(turns, add_generation_prompt=True)
    return text.removeprefix(tokens.tokenizer.bos_token or "") if tokens.adds_bos else text

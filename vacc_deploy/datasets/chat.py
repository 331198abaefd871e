"""Records of questions with answers, in the forms that people keep them in, to conversations.

Each record is recognised by its own keys. The forms are those of ShareGPT, of OpenAI's messages, of
Alpaca, and of the published answers of R1 models, which have their thoughts in a key of their own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from vacc_deploy.datasets.files import Document
from vacc_deploy.datasets.odd import OddRecordError, check_text
from vacc_deploy.errors import shorten
from vacc_deploy.json_files import parse_json

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
_NAMES = {
    SYSTEM: "system developer",
    # What a tool returns stands where a question stands, and a call of it where an answer stands.
    USER: "user human prompter tool function observation tool_response function_response ipython",
    ASSISTANT: "assistant gpt chatgpt bard bing claude bot model function_call tool_call",
}
ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
# Keys in the order in which they are looked for; upper and lower case count the same.
LISTS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "problem", "question", "query", "instruction", "input")
# What a model wrote comes before the solution that a data set was given.
ANSWERS = (
    *("deepseek_solution", "deepseek_attempt", "response", "completion", "generation"),
    *("generations", "reannotated_assistant_content", "attempt", "output", "content"),
    *("solution", "answer"),
)
THOUGHTS = (
    *("reasoning_content", "deepseek_reasoning", "deepseek_thinking_trajectory", "reasoning"),
    *("thinking", "complex_cot", "thinking_trajectories"),
)
SYSTEMS = ("system", "system_prompt")
TEXT = "text"
COLUMNS = frozenset((*LISTS, *PROMPTS, *ANSWERS, *THOUGHTS, *SYSTEMS, TEXT))
EXPECTED = "messages, conversations, a question with its answer, or text"
# Some sets say with the same key whether the model was to think.
_FLAGS = ("on", "off")
_THINK_CLOSE = "</think>"
# How Sky-T1 and the sets that follow it mark thoughts and answers.
_THOUGHT_MARKS = ("<|begin_of_thought|>", "<|end_of_thought|>")
_ANSWER_MARKS = ("<|begin_of_solution|>", "<|end_of_solution|>")


@dataclass
class _Turn:
    role: str
    content: str
    thought: str = ""


def read_chat(record: Mapping[str, Any]) -> Document:
    """Return the conversation of a record, or its text where it has nothing but ``text``.

    A conversation without an answered question is empty.

    Raises:
        OddRecordError: no form fits its keys, a role is unknown, or a text is missing.
    """
    fields = {name.lower(): value for name, value in record.items() if value is not None}
    turns = [_Turn(SYSTEM, text) for text in _find_texts(fields, SYSTEMS)]
    if key := _find(fields, LISTS):
        turns += _read_turns(fields[key], key)
        if _is_question(turns) and (answer := _find(fields, ANSWERS)):
            turns.append(_answer(fields, answer))
    elif (prompt := _find(fields, PROMPTS)) and (
        answer := _find({name: fields[name] for name in fields if name != prompt}, ANSWERS)
    ):
        turns += _read_prompt(fields, prompt)
        is_list = isinstance(fields[answer], list) and _holds_turns(fields[answer])
        turns += _read_turns(fields[answer], answer) if is_list else [_answer(fields, answer)]
    elif TEXT in fields:
        return check_text(fields[TEXT], TEXT)
    else:
        keys = ", ".join(shorten(name, 40) for name in sorted(record)[:10]) or "none"
        raise OddRecordError(f"has the keys {keys}; expected {EXPECTED}")
    return _arrange(turns)


def is_chat(keys: Collection[str], *, is_whole: bool) -> bool:
    """Return whether records with these keys are chats; not ``is_whole``: there may be more."""
    names = {key.lower() for key in keys}
    has_pair = not names.isdisjoint(PROMPTS) and not names.isdisjoint(ANSWERS)
    may_have_pair = not is_whole and not names.isdisjoint((*PROMPTS, *ANSWERS, *THOUGHTS))
    return not names.isdisjoint(LISTS) or has_pair or may_have_pair


def _find(fields: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((name for name in names if name in fields), "")


def _find_texts(fields: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    name = _find(fields, names)
    return [check_text(fields[name], name)] if name else []


def _read_prompt(fields: Mapping[str, Any], key: str) -> list[_Turn]:
    """Return the question of a record, which may also be a list of turns."""
    if isinstance(fields[key], list):
        return _read_turns(fields[key], key)
    prompt = check_text(fields[key], key)
    if key == "instruction" and (extra := check_text(fields.get("input", ""), "input")).strip():
        prompt = f"{prompt}\n\n{extra}"
    return [_Turn(USER, prompt)]


def _answer(fields: Mapping[str, Any], key: str) -> _Turn:
    """Return the answer of a record, with the thoughts that stand under another key."""
    content, thought = _first_text(fields[key], key), _find(fields, THOUGHTS)
    if not thought or isinstance(fields[thought], bool):
        return _Turn(ASSISTANT, content)
    text = _first_text(fields[thought], thought)
    return _Turn(ASSISTANT, content, "" if text.strip().lower() in _FLAGS else text)


def _first_text(value: Any, key: str) -> str:
    """Return a text, or the first of several answers to one question."""
    return check_text(value[0] if isinstance(value, list) and value else value, key)


def _holds_turns(values: list[Any]) -> bool:
    return bool(values) and isinstance(values[0], dict)


def _read_turns(items: Any, key: str) -> list[_Turn]:
    if isinstance(items, str):
        # Tables without nested columns hold the list as JSON text.
        with suppress(ValueError):
            items = parse_json(items)
    if not isinstance(items, list):
        raise OddRecordError(f'has no list of turns under "{key}": got {type(items).__name__}')
    turns: list[_Turn] = []
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise OddRecordError(f'holds {type(item).__name__} as turn {number} of "{key}"')
        turns += _read_turn({name: value for name, value in item.items() if value is not None})
    return turns


def _read_turn(item: Mapping[str, Any]) -> list[_Turn]:
    name = item.get("from", item.get("role"))
    if name is None and (question := _find(item, ("user", "human"))) and ASSISTANT in item:
        # A question with its answer in one item.
        answer = check_text(item[ASSISTANT], ASSISTANT)
        return [_Turn(USER, check_text(item[question], question)), _Turn(ASSISTANT, answer)]
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise OddRecordError(f"has a turn of the unknown role {str(name)[:40]!r}")
    key = "value" if "value" in item else "content"
    thoughts = _find_texts(item, ("reasoning_content", "reasoning", "thinking"))
    return [_Turn(role, _read_content(item, key), *thoughts)]


def _read_content(item: Mapping[str, Any], key: str) -> str:
    """Return the text of a turn: text, a list of parts, or in its place the calls of tools."""
    content = item.get(key)
    if isinstance(content, list):
        texts = [_read_part(part) for part in content]
        return "\n".join(texts)
    if content is None and item.get("tool_calls"):
        return check_text(_write_calls(item["tool_calls"]), key)
    return check_text(content, key)


def _write_calls(calls: Any) -> str:
    try:
        return json.dumps(calls, ensure_ascii=False, default=str)
    except RecursionError as err:
        raise OddRecordError("has calls of tools that are nested too deep") from err


def _read_part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type", TEXT) != TEXT:
        what = part.get("type") if isinstance(part, dict) else part
        raise OddRecordError(f"has a turn with a part that is no text: {str(what)[:40]!r}")
    return check_text(part.get(TEXT), TEXT)


def _is_question(turns: list[_Turn]) -> bool:
    return bool(turns) and turns[-1].role == USER


def _arrange(turns: list[_Turn]) -> Document:
    """Return turns that take turns, from the first question to the last answer.

    The system prompts come first, as R1's own template puts them.
    """
    turns = [turn for turn in turns if turn.content.strip() or turn.thought.strip()]
    system = "\n\n".join(turn.content for turn in turns if turn.role == SYSTEM)
    spoken = [turn for turn in turns if turn.role != SYSTEM]
    merged = [_merge(list(group)) for _, group in groupby(spoken, key=lambda turn: turn.role)]
    if merged and merged[0].role == ASSISTANT:
        del merged[0]
    if _is_question(merged):
        merged.pop()
    if not merged:
        return ()
    contents = [turn.content for turn in merged]
    contents[-1] = _write_thought(merged[-1])
    head = [{"role": SYSTEM, "content": system}] if system else []
    pairs = zip(merged, contents, strict=True)
    return (*head, *({"role": turn.role, "content": text} for turn, text in pairs))


def _merge(turns: list[_Turn]) -> _Turn:
    """Return several turns of one role as one."""
    # All at once: joined pair by pair the time would grow with the square of their number.
    content = "\n\n".join(turn.content for turn in turns if turn.content)
    thought = "\n\n".join(turn.thought for turn in turns if turn.thought)
    return _Turn(turns[0].role, content, thought)


def _write_thought(turn: _Turn) -> str:
    """Return the last answer with its thoughts as R1 models write them.

    Only the last one: what a server sends of earlier answers has no thoughts.
    """
    thought, content = turn.thought.strip(), turn.content
    if not thought:
        thought, content = _split_marked(content)
    if not thought or _THINK_CLOSE in content:
        return content
    return f"<think>\n{thought}\n{_THINK_CLOSE}\n\n{content.strip()}"


def _split_marked(content: str) -> tuple[str, str]:
    """Return the thoughts and the answer of a text in Sky-T1's marks; else nothing and the text."""
    head, begin, rest = content.partition(_THOUGHT_MARKS[0])
    thought, end, answer = rest.partition(_THOUGHT_MARKS[1])
    if head.strip() or not begin or not end:
        return "", content
    answer = answer.strip().removeprefix(_ANSWER_MARKS[0]).removesuffix(_ANSWER_MARKS[1])
    return thought.strip(), answer.strip()

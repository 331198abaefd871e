"""Records of chats in the forms that people keep them in."""

import json
import time

import pytest

from vacc_deploy.datasets.chat import read_chat
from vacc_deploy.datasets.odd import OddRecordError, Tally
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError

THOUGHT = "<think>\nhm\n</think>\n\na"


def turns(*pairs):
    """Return a conversation: S, U and A stand for the roles."""
    roles = {"S": "system", "U": "user", "A": "assistant"}
    return tuple({"role": roles[role], "content": content} for role, content in pairs)


SQA = turns(("S", "s"), ("U", "q"), ("A", "a"))
QA = turns(("U", "q"), ("A", "a"))
THINKING = turns(("U", "q"), ("A", THOUGHT))


def share(*pairs, **more):
    return {"conversations": [{"from": role, "value": text} for role, text in pairs], **more}


def messages(*pairs, **more):
    return {"messages": [{"role": role, "content": text} for role, text in pairs], **more}


ASKED = ({"role": "user", "content": "q"},)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # ShareGPT, with the names that its files have for the two sides.
        (share(("human", "q"), ("gpt", "a"), id="x"), QA),
        (share(("user", "q"), ("chatgpt", "a")), QA),
        (share(("Human", "q"), (" bard ", "a")), QA),
        (share(("human", "q"), ("gpt", "a"), system="s"), SQA),
        (share(("system", "s"), ("human", "q"), ("gpt", "a")), SQA),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, QA),
        # OpenAI.
        (messages(("user", "q"), ("assistant", "a")), QA),
        ({"messages": json.dumps([*ASKED, {"role": "assistant", "content": "a"}])}, QA),
        (messages(("developer", "s"), ("user", "q"), ("assistant", "a")), SQA),
        (
            messages(
                ("user", [{"type": "text", "text": "q"}]),
                ("assistant", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            ),
            turns(("U", "q"), ("A", "a\nb")),
        ),
        (
            {
                "messages": [
                    *ASKED,
                    {"role": "assistant", "content": "a", "reasoning_content": "hm"},
                ]
            },
            THINKING,
        ),
        (
            {
                "messages": [
                    *ASKED,
                    {"role": "assistant", "content": "a", "reasoning_content": None},
                ]
            },
            QA,
        ),
        # Two lists, or a list and a text.
        ({"prompt": list(ASKED), "completion": [{"role": "assistant", "content": "a"}]}, QA),
        ({"input": list(ASKED), "output": "a", "reasoning": "off", "system_prompt": ""}, QA),
        (
            messages(("system", "s"), ("user", "q"), reasoning="hm", answer="a"),
            turns(("S", "s"), ("U", "q"), ("A", THOUGHT)),
        ),
        # Pairs, as the published answers of R1 have them.
        ({"prompt": "q", "response": "a"}, QA),
        ({"prompt": "q", "completion": "a"}, QA),
        ({"question": "q", "answer": "a"}, QA),
        ({"query": "q", "response": "a"}, QA),
        ({"input": "q", "output": "a"}, QA),
        (
            {"problem": "q", "solution": "s", "answer": "42", "generations": [THOUGHT, "b"]},
            THINKING,
        ),
        ({"problem": "q", "solution": "s", "answer": "42"}, turns(("U", "q"), ("A", "s"))),
        ({"problem": "q", "generation": THOUGHT, "solution": "s"}, THINKING),
        (
            {
                "problem": "q",
                "deepseek_reasoning": "hm",
                "deepseek_solution": "a",
                "ground_truth_solution": "g",
            },
            THINKING,
        ),
        (
            {"question": "q", "solution": "s", "thinking_trajectories": ["hm"], "attempt": "a"},
            THINKING,
        ),
        ({"input": "q", "reasoning_content": "hm", "content": "a", "score": 9}, THINKING),
        ({"Question": "q", "Complex_CoT": "hm", "Response": "a"}, THINKING),
        ({"prompt": "q", "response": THOUGHT, "reasoning_content": "hm"}, THINKING),
        # Alpaca, and text.
        ({"instruction": "q", "input": "", "output": "a"}, QA),
        ({"instruction": "q", "input": "i", "output": "a"}, turns(("U", "q\n\ni"), ("A", "a"))),
        ({"text": "t"}, "t"),
        # A key that a table fills for other rows only.
        ({"messages": None, "prompt": "q", "response": "a", "text": "t"}, QA),
    ],
)
def test_every_form_becomes_the_same_conversation(record, expected):
    assert read_chat(record) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # The question at the end has no answer; an answer at the beginning has no question.
        (share(("human", "q"), ("gpt", "a"), ("human", "r")), QA),
        (share(("gpt", "x"), ("human", "q"), ("gpt", "a")), QA),
        # Two turns of one side are one turn, and a blank turn is none.
        (
            share(("human", "q"), ("human", "r"), ("gpt", "a"), ("gpt", "b")),
            turns(("U", "q\n\nr"), ("A", "a\n\nb")),
        ),
        (share(("human", "q"), ("gpt", " "), ("gpt", "a")), QA),
        # System prompts come first.
        (
            share(("human", "q"), ("system", "s"), ("gpt", "a"), system="r"),
            turns(("S", "r\n\ns"), ("U", "q"), ("A", "a")),
        ),
        # Tools: a call stands for an answer, what comes back for a question.
        (
            share(("human", "q"), ("function_call", "f()"), ("observation", "1"), ("gpt", "a")),
            turns(("U", "q"), ("A", "f()"), ("U", "1"), ("A", "a")),
        ),
        # Nothing is answered.
        ({"conversations": []}, ()),
        (share(("human", "q")), ()),
        (share(("gpt", "a")), ()),
        (share(("human", "q"), ("gpt", "")), ()),
    ],
)
def test_turns_take_turns_from_the_first_question_to_the_last_answer(record, expected):
    assert read_chat(record) == expected


def test_only_the_last_answer_has_its_thoughts():
    answer = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    record = {"messages": [*ASKED, answer, *ASKED, answer]}
    assert read_chat(record) == QA + THINKING


def test_calls_of_tools_stand_for_the_content():
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
    call = {"role": "assistant", "content": None, "tool_calls": calls}
    document = read_chat({"messages": [*ASKED, call]})
    assert json.loads(document[1]["content"]) == calls


def test_the_marks_of_sky_t1_become_thoughts():
    marked = (
        "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n"
        "<|begin_of_solution|>\n\na\n\n<|end_of_solution|>"
    )
    assert read_chat(share(("user", "q"), ("assistant", marked))) == THINKING
    unfinished = marked.partition("<|end_of_thought|>")[0]
    assert read_chat(share(("user", "q"), ("assistant", unfinished)))[1]["content"] == unfinished


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (share(("human", "q"), ("narrator", "a")), "has a turn of the unknown role 'narrator'"),
        ({"conversations": [{"value": "q"}]}, "has a turn of the unknown role 'None'"),
        ({"conversations": [{"from": 1, "value": "q"}]}, "has a turn of the unknown role '1'"),
        ({"conversations": "q"}, 'has no list of turns under "conversations": got str'),
        ({"messages": ["q"]}, 'holds str as turn 1 of "messages"'),
        ({"messages": "[" * 99}, 'has no list of turns under "messages": got str'),
        (messages(("user", 42)), 'has no text under "content": got int'),
        (messages(("user", None)), 'has no text under "content": got NoneType'),
        (messages(("user", [{"type": "image_url"}])), "with a part that is no text: 'image_url'"),
        (messages(("user", ["q"])), "with a part that is no text: 'q'"),
        (messages(("user", "\ud800")), "that is not valid Unicode"),
        ({"prompt": "q", "response": 42}, 'has no text under "response": got int'),
        ({"prompt": "q", "response": []}, 'has no text under "response": got list'),
        ({"prompt": {}, "response": "a"}, 'has no text under "prompt": got dict'),
        ({"instruction": "q", "input": [], "output": "a"}, 'has no text under "input": got list'),
        ({"prompt": "q"}, "has the keys prompt; expected messages"),
        ({}, "has the keys none; expected messages"),
    ],
)
def test_an_odd_record_says_why(record, reason):
    with pytest.raises(OddRecordError) as caught:
        read_chat(record)
    assert reason in str(caught.value)


def test_each_record_is_known_by_its_own_keys(tmp_path):
    path, tally = tmp_path / "mixed.jsonl", Tally()
    records = [share(("human", "q"), ("gpt", "a")), {"prompt": "q", "response": "a"}, {"text": "t"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, share()]))
    documents = list(read_documents(CalibrationSource("chat", path), tally))
    assert documents == [QA, QA, "t"]
    # The unanswered one is no odd record: there may be any number of them.
    assert (tally.num_empty, tally.num_skipped) == (1, 0)


def test_a_file_without_any_answer_is_an_error(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps([share(("human", "q"))] * 3))
    with pytest.raises(CalibrationError, match="nothing in it but blank text or unanswered questi"):
        list(read_documents(CalibrationSource("chat", path)))


def test_many_turns_of_one_role_take_time_by_their_number():
    begun = time.process_time()
    record = messages(*[("user", "a" * 60)] * 100_000, ("assistant", "b"))
    question, answer = read_chat(record)
    assert len(question["content"]) == 62 * 100_000 - 2 and answer["content"] == "b"
    assert time.process_time() - begun < 5

"""Edges of the bounds on what evaluate asks."""

import json

from tokenizer_builders import write_tokenizer

from vacc_deploy.bounds import EVALUATED_TOKENS, PROBLEM_CHARACTERS, PROBLEMS, RECORD_BYTES
from vacc_deploy.datasets.ceval import Question
from vacc_deploy.datasets.problems import read_problems
from vacc_deploy.evaluation.ceval_prompts import build_prompts, write_prompt
from vacc_deploy.text.tokenizer import Tokenizer


def evaluated_tokens(folder, over):
    row = {"question": "", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "A"}
    empty = Question("val", "law", row)
    write_tokenizer(folder)
    # A byte is a token; so are the BOS and the space before the letter.
    length = EVALUATED_TOKENS - len(write_prompt(empty, ()).encode()) - 2 + over
    asked = empty._replace(row={**row, "question": "x" * length})
    (prompt,) = build_prompts(
        [asked], {}, shots=0, tokenizer=Tokenizer.from_dir(folder), longest=1 << 30
    )
    assert len(prompt.ids) == EVALUATED_TOKENS


def problems(folder, over):
    path = folder / "problems.jsonl"
    path.write_text('{"question":"1","answer":1}\n' * (PROBLEMS + over), "utf-8")
    assert len(read_problems(path)) == PROBLEMS


def problem_characters(folder, over):
    count = 2 * PROBLEM_CHARACTERS // RECORD_BYTES
    length = PROBLEM_CHARACTERS // count - 1  # and one of the result
    path = folder / "problems.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for more in (*[0] * (count - 1), over):
            file.write(json.dumps({"question": "x" * (length + more), "answer": "1"}) + "\n")
    assert len(read_problems(path)) == count


EDGES = {
    "EVALUATED_TOKENS": evaluated_tokens,
    "PROBLEMS": problems,
    "PROBLEM_CHARACTERS": problem_characters,
}

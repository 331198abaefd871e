"""Edge of the bound on what evaluate asks."""

from tokenizer_builders import write_tokenizer

from vacc_deploy.bounds import EVALUATED_TOKENS
from vacc_deploy.datasets.ceval import Question
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


EDGES = {"EVALUATED_TOKENS": evaluated_tokens}

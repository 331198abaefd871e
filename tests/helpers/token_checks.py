"""Small directories of a model without weights, and what ``check`` finds of their tokenizer."""

import json

from checkpoint_builders import build_config
from library_readings import agreeing, finished
from token_fixtures import write_json
from tokenizer_builders import BOS_ID, EOS_ID, tokenizer_config, write_tokenizer

from vacc_deploy.check.tokenizer import check_tokens
from vacc_deploy.models.parse import parse_config
from vacc_deploy.problems import tokens

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}


def write(folder, *, backend=None, config=None, generation=GENERATION, **model):
    """Write the small files of a model whose ids agree."""
    write_tokenizer(folder, backend, config or tokenizer_config())
    values = build_config(overrides=model)
    write_json(folder / "config.json", values)
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    return folder


def edit(folder, **sections):
    """Change parts of ``tokenizer.json``."""
    path = folder / "tokenizer.json"
    write_json(path, {**json.loads(path.read_text("utf-8")), **sections})
    return folder


def find(folder, reading=None, **changes):
    """Return what is found, by code of the rule."""
    config = parse_config(json.loads((folder / "config.json").read_text("utf-8")), where="config")
    reading = reading or agreeing(folder, **changes)
    found = check_tokens(folder, config, finished(reading))
    assert len({problem.rule for problem in found.problems}) == len(found.problems)
    return found.contract, {problem.rule: problem for problem in found.problems}


def only(folder, rule, reading=None, **changes):
    """Return the one problem that is found beside the note on two ways to put BOS."""
    _, problems = find(folder, reading, **changes)
    assert set(problems) - {tokens.BOS_BY_BOTH} == {rule}
    assert not str(problems[rule]).endswith(".")
    return problems[rule]

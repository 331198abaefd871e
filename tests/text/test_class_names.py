"""A class in tokenizer_config.json that is not that of tokenizer.json, as R1-0528-Qwen3-8B has."""

import pytest
from token_fixtures import TEXT, their_tokenizer, train_backend, write_files
from tokenizer_builders import ASSISTANT, BOS, EOS, USER, r1_0528_config
from tokenizers import AddedToken

from vacc_deploy.text.tokenizer import Tokenizer

MARKS = ("<think>", "</think>")


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_the_ids_are_those_of_tokenizer_json(tmp_path, model_type):
    """Some releases of transformers 5 load LlamaTokenizer instead: see docs/prepare.md."""
    backend = train_backend()
    special = [AddedToken(token, special=True) for token in (BOS, EOS, USER, ASSISTANT)]
    backend.add_tokens([*special, *(AddedToken(mark, normalized=False) for mark in MARKS)])
    expected = backend.encode(TEXT, add_special_tokens=False).ids
    directory = write_files(
        tmp_path, backend=backend, model_type=model_type, config=r1_0528_config()
    )
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode(TEXT, add_bos=False) == expected
    assert tokenizer.decode(tokenizer.encode("2 + 2 数", add_bos=False)) == "2 + 2 数"
    assert (tokenizer.adds_bos, tokenizer.notes) == (False, ())
    ids = [backend.token_to_id(token) for token in (BOS, EOS)]
    assert [tokenizer.bos_id, tokenizer.eos_id] == ids
    # The template writes the BOS; the prompt has one.
    prompt = tokenizer.encode_chat([{"role": "user", "content": "q"}], add_generation_prompt=True)
    assert tokenizer.decode(prompt) == f"{BOS}{USER}q{ASSISTANT}" and prompt.count(ids[0]) == 1
    theirs = their_tokenizer(directory)
    if type(theirs).__name__ != "LlamaTokenizer":
        assert theirs.encode(TEXT, add_special_tokens=False) == expected

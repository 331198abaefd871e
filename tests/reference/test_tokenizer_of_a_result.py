"""What a comparison for a page says of the tokenizer beside its figures."""

from pathlib import Path

import pytest
from checkpoint_builders import write_checkpoint
from library_readings import agreeing

from vacc_deploy.reference.limits import Limits
from vacc_deploy.reference.verify import VerifyResult, add_tokenizer
from vacc_deploy.text import token_contract


@pytest.fixture
def result(tmp_path):
    directory = write_checkpoint(tmp_path / "x")
    return VerifyResult("m", directory, Path("float"), "t", Limits())


def test_a_contract_that_holds_is_added_without_a_word(result, monkeypatch):
    monkeypatch.setattr(token_contract, "read_with_library", agreeing)
    found = add_tokenizer(result)
    assert found.tokenizer.passed
    assert found.to_dict()["tokenizer"]["transformers_version"] == "9.8.7"
    assert found.notes == () and found.failures == ()


def test_other_ids_are_a_note_and_no_failure(result, monkeypatch):
    def differing(directory):
        reading = agreeing(directory)
        return agreeing(directory, ids=((1,), *reading.ids[1:]))

    monkeypatch.setattr(token_contract, "read_with_library", differing)
    found = add_tokenizer(result)
    assert found.to_dict()["tokenizer"]["passed"] is False
    assert found.failures == ()
    (note,) = found.notes
    assert note.endswith(f"vacc-deploy check {result.deployed_dir} says where.")


def test_a_tokenizer_that_cannot_be_read_is_a_note(result):
    (result.deployed_dir / "tokenizer.json").write_text("{")
    found = add_tokenizer(result)
    assert found.tokenizer is None and found.to_dict()["tokenizer"] is None
    assert "the tokenizer was not compared" in found.notes[0]

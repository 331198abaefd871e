"""Chats, folders and odd records on their way to calibration rows."""

import json
import zipfile

import pytest
from texts import write_alpaca
from tokenizer_builders import BOS_ID, EOS_ID, byte_ids, write_tokenizer

from vacc_deploy.calibration.conversations import DocumentEncoder
from vacc_deploy.calibration.rows import build_rows
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.progress import SILENT
from vacc_deploy.text.tokenizer import Tokenizer

TABLE = "id,question,A,B,C,D,answer\n" + "".join(f"{n},q{n},1,2,3,4,A\n" for n in range(20))


@pytest.fixture
def tokenizer(tmp_path):
    return Tokenizer.from_dir(write_tokenizer(tmp_path / "tokenizer"))


def build(source, tokenizer, **options):
    values = {"num_samples": 4, "sequence_length": 16, "seed": 0, "vocab_size": 300, **options}
    return build_rows([source], tokenizer, **values)


def write_chats(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return CalibrationSource("chat", path)


class Echo:
    """Answers with the last id of the prompt."""

    batch_size, max_prompt_tokens = 4, 12

    def write(self, prompts):
        return [[prompt[-1]] for prompt in prompts]

    def describe(self):
        return {}


def test_odd_and_empty_records_are_in_the_report_and_one_warning(tmp_path, tokenizer):
    records = [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(60)]
    records[11]["output"], records[13]["input"] = 42, []
    result = build(write_alpaca(tmp_path, records), tokenizer)
    (report,) = result.to_dict()["sources"]
    assert (report["records_skipped"], report["documents_read"]) == (2, 58)
    first = 'record 12 has no text under "output": got int'
    assert report["first_skipped"] == first
    assert result.warnings == (f"alpaca.json: 2 odd records were skipped, the first: {first}",)
    unanswered = {"conversations": [{"from": "human", "value": "q"}]}
    pairs = [{"prompt": f"q{n}", "response": f"a{n}"} for n in range(60)]
    result = build(write_chats(tmp_path / "c.jsonl", [*pairs, *[unanswered] * 30]), tokenizer)
    (report,) = result.to_dict()["sources"]
    assert (report["documents_empty"], report["records_skipped"]) == (30, 0)
    assert result.warnings == ()


def test_thoughts_under_their_own_key_are_written_as_in_traces(tmp_path, tokenizer):
    chats = write_chats(
        tmp_path / "c.jsonl",
        [
            {"input": f"q{n}", "reasoning_content": "hm", "content": f"a{n}", "score": 9}
            for n in range(40)
        ],
    )
    traces = tmp_path / "t.txt"
    traces.write_text(
        "".join(
            f"<｜User｜>q{n}<｜Assistant｜><think>\nhm\n</think>\n\na{n}<｜end▁of▁sentence｜>"
            for n in range(40)
        )
    )
    encoded = []
    for source in (chats, CalibrationSource("traces", traces)):
        encoder = DocumentEncoder(source, tokenizer, 300, writer=None, progress=SILENT)
        encoded.append(encoder.encode(list(read_documents(source))))
    assert len(encoded[0]) == 40 and encoded[0] == encoded[1]


def test_texts_among_chats_are_plain_text_also_with_own_answers(tmp_path, tokenizer):
    documents = ["t", ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})]
    documents.append(({"role": "user", "content": "q" * 20}, documents[1][1]))
    encoder = DocumentEncoder(
        CalibrationSource("chat", tmp_path), tokenizer, 300, writer=Echo(), progress=SILENT
    )
    text, answered, too_long = encoder.encode(documents)
    assert text == [BOS_ID, *byte_ids("t")]
    assert answered[0] == BOS_ID and answered[-1] == answered[-2] != EOS_ID
    assert (too_long, encoder.num_skipped) == ([], 1)
    source = write_chats(tmp_path / "c", [{"text": "t" * 9}, {"prompt": "q", "response": "a"}] * 40)
    rows = build(source, tokenizer, writer=Echo())
    assert rows.tokens.shape == (4, 16)


def test_a_folder_gives_the_rows_of_its_archive(tmp_path, tokenizer):
    folder = tmp_path / "ceval-exam"
    (folder / "val").mkdir(parents=True)
    (folder / "val/law_val.csv").write_text(TABLE, "utf-8")
    path = tmp_path / "ceval-exam.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "val/law_val.csv", "val/law_val.csv")
    results = [build(CalibrationSource("ceval", place), tokenizer) for place in (folder, path)]
    assert (results[0].tokens == results[1].tokens).all()
    assert results[0].sources[0].file == "ceval-exam"
    assert results[0].sources[0].sha256 != results[1].sources[0].sha256

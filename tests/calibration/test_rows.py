import json
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import Recorder
from texts import sha256, write_alpaca, write_numbers
from tokenizer_builders import (
    ASSISTANT,
    ASSISTANT_ID,
    BOS,
    BOS_ID,
    EOS,
    EOS_ID,
    USER,
    USER_ID,
    byte_ids,
    tokenizer_config,
    write_tokenizer,
)

from vacc_deploy.calibration.rows import build_rows, share_rows
from vacc_deploy.calibration.split import hash_document, is_held_out, split_shares
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import CalibrationError, CheckpointError, UsageError
from vacc_deploy.text.tokenizer import Tokenizer

# Short documents that can be found again in a stream of tokens.
MARKED = [f"<{number:04}>" for number in range(900)]
KNOWN_SHA256 = "95caa7c18302861bbfabbffc7130a4c4399af76d21f3f7f910a23ac5f6638d7f"


@pytest.fixture
def tokenizer(tmp_path):
    return Tokenizer.from_dir(write_tokenizer(tmp_path / "tokenizer"))


def write_c4(directory, texts):
    path = directory / "c4.json"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return CalibrationSource("c4", path)


def write_ceval(directory, num_rows):
    path = directory / "ceval-exam.zip"
    table = "id,question,A,B,C,D,answer\n" + "".join(
        f"{number},q{number},1,2,3,4,A\n" for number in range(num_rows)
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("val/law_val.csv", table)
    return CalibrationSource("ceval", path)


def mixed_sources(directory):
    """Return one source of each kind, for two fifths, a fifth, a fifth and a tenth of the rows."""
    texts = [f"c4 document {number} " + "word " * (number % 7) for number in range(200)]
    return [
        replace(write_c4(directory, texts), weight=2.0),
        write_ceval(directory, 40),
        write_alpaca(directory, 200),
        CalibrationSource("text", write_numbers(directory / "notes.txt", 500), 0.5),
    ]


def build(sources, tokenizer, *, num_samples=20, sequence_length=64, seed=0, **options):
    return build_rows(
        sources,
        tokenizer,
        num_samples=num_samples,
        sequence_length=sequence_length,
        seed=seed,
        vocab_size=options.pop("vocab_size", ASSISTANT_ID + 1),
        **options,
    )


def documents_in(rows, tokenizer):
    """Return the documents of ``MARKED`` that are whole in a stream of rows."""
    return set(re.findall(r"<\d{4}>", tokenizer.decode(rows.ravel().tolist())))


def halves(result, tokenizer):
    """Return the marked documents of the fitted and of the held-out rows."""
    return (
        documents_in(result.tokens[result.num_held_out :], tokenizer),
        documents_in(result.tokens[: result.num_held_out], tokenizer),
    )


def test_plain_documents_are_joined_with_one_bos_each_and_cut(tmp_path, tokenizer):
    texts = [f"{number:04}" for number in range(200)]
    result = build([write_c4(tmp_path, texts)], tokenizer, num_samples=3, sequence_length=7)
    assert result.tokens.dtype == np.int64
    assert result.tokens.shape == (3, 7)
    assert (result.num_held_out, result.num_fit_rows) == (1, 2)
    # The held-out row, then the stream that the two fitted rows were cut from.
    for stream in (result.tokens[0].tolist(), result.tokens[1:].ravel().tolist()):
        assert stream[0::5] == [BOS_ID] * len(stream[0::5])
        whole = [tokenizer.decode(stream[at : at + 4]) for at in range(1, len(stream) - 4, 5)]
        assert whole and set(whole) <= set(texts)
    assert result.row_sources == (0, 0, 0)


def test_conversations_go_through_the_template_with_one_bos_each(tmp_path, tokenizer):
    result = build([write_alpaca(tmp_path)], tokenizer, num_samples=1, sequence_length=80)
    # 10 conversations [10, 8], here in the order of their questions.
    conversations = sorted(result.tokens.reshape(10, 8).tolist())
    for number, ids in enumerate(conversations):
        question, answer = byte_ids(f"q{number}"), byte_ids(f"a{number}")
        assert ids == [BOS_ID, USER_ID, *question, ASSISTANT_ID, *answer, EOS_ID]
    assert (result.sources[0].answer_form, result.sources[0].templated) == ("plain", True)


def test_conversations_without_a_template_are_plain_text_and_said_so(tmp_path):
    config = tokenizer_config(chat_template=None)
    plain = Tokenizer.from_dir(write_tokenizer(tmp_path / "plain", config=config))
    options = {"num_samples": 1, "sequence_length": 60, "progress": Recorder()}
    result = build([write_alpaca(tmp_path)], plain, **options)
    assert not result.to_dict()["sources"][0]["templated"]
    (warning,) = options["progress"].warnings
    assert "no chat template: the conversations of alpaca.json" in warning


def test_every_source_gives_exactly_its_rows(tmp_path, tokenizer):
    progress = Recorder()
    result = build(mixed_sources(tmp_path), tokenizer, num_samples=45, progress=progress)
    assert result.tokens.shape == (45, 64)
    assert [source.rows for source in result.sources] == [20, 10, 10, 5]
    held_out, fitted = result.row_sources[: result.num_held_out], result.row_sources[5:]
    assert [held_out.count(position) for position in range(4)] == [2, 1, 1, 1]
    assert [fitted.count(position) for position in range(4)] == [18, 9, 9, 4]
    assert [source.held_out_rows for source in result.sources] == [2, 1, 1, 1]
    assert progress.events[0] == ("start", "Reading calibration text 2880 tokens")
    assert (progress.amount(), progress.events[-1]) == (45 * 64, ("finish",))


def test_report_says_what_was_read(tmp_path, tokenizer):
    source = replace(write_c4(tmp_path, [f"{number:04}" for number in range(200)]), weight=3.0)
    result = build([source], tokenizer, num_samples=3, sequence_length=7, seed=5)
    report = json.loads(json.dumps(result.to_dict()))
    assert len(report.pop("tokens_sha256")) == 64
    assert 5 <= report["sources"][0].pop("documents_read") <= 200
    assert report == {
        "num_samples": 3,
        "num_held_out_samples": 1,
        "sequence_length": 7,
        "tokens": 21,
        "seed": 5,
        "evaluation_share": 0.0,
        "answers": None,
        "sources": [
            {
                "kind": "c4",
                "file": "c4.json",
                "sha256": sha256(source.path),
                "weight": 3.0,
                "rows": 3,
                "tokens": 21,
                "held_out_rows": 1,
                "documents_used": 5,
                "documents_held_out": 2,
                "documents_shared": 0,
                "documents_skipped": 0,
                "documents_empty": 0,
                "records_skipped": 0,
                "first_skipped": None,
                "templated": False,
                "answer_form": None,
                "own_answers": False,
            }
        ],
    }


def test_held_out_rows_share_no_document_with_fit_rows(tmp_path, tokenizer):
    source, held_out = write_c4(tmp_path, MARKED), set()
    for seed in range(3):
        result = build([source], tokenizer, num_samples=30, sequence_length=64, seed=seed)
        assert result.num_held_out == 3
        fit, held = halves(result, tokenizer)
        assert len(fit) > 200 and len(held) > 20
        assert not fit & held
        held_out |= held
        assert result.sources[0].documents_shared == 0
    # The same documents are held out under every seed.
    assert not held_out & fit


def test_the_evaluation_share_never_calibrates(tmp_path, tokenizer):
    source = write_c4(tmp_path, MARKED)
    options = {"sequence_length": 64, "evaluation_share": 0.3}
    judged = set()
    for seed in range(2):
        result = build([source], tokenizer, num_samples=20, seed=seed, part="evaluation", **options)
        assert result.num_held_out == 0
        judged |= documents_in(result.tokens, tokenizer)
    calibrated = build([source], tokenizer, num_samples=50, seed=5, **options)
    used = documents_in(calibrated.tokens, tokenizer)
    assert len(judged) > 150 and len(used) > 300
    assert not judged & used
    assert calibrated.to_dict()["evaluation_share"] == 0.3
    with pytest.raises(CalibrationError, match="too few tokens"):
        build([source], tokenizer, num_samples=50, part="evaluation", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "test"}, "The part is 'test', expected one of calibration, evaluation"),
        ({"evaluation_share": 0.95}, "evaluation share is 0.95, expected 0 to 0.9"),
        ({"evaluation_share": -0.1}, "evaluation share is -0.1"),
        ({"part": "evaluation"}, "holds no document: the evaluation share is 0"),
        ({"num_samples": 0}, "calibration samples is 0, expected 1 or more"),
        ({"sequence_length": -1}, "calibration sequence length is -1"),
        ({"num_samples": 1 << 20, "sequence_length": 1 << 10}, "more than 268,435,456"),
    ],
)
def test_impossible_parts_and_sizes_are_usage_errors(tmp_path, tokenizer, options, message):
    with pytest.raises(UsageError, match=message):
        build([write_c4(tmp_path, ["abcd"])], tokenizer, **options)


def test_a_file_of_one_document_is_used_to_its_last_token_and_said_so(tmp_path, tokenizer):
    text = "".join(chr(ord("a") + number % 26) for number in range(79))
    options = {"num_samples": 10, "sequence_length": 8, "progress": Recorder()}
    result = build([write_c4(tmp_path, [text])], tokenizer, **options)
    assert sorted(result.tokens.ravel().tolist()) == sorted([BOS_ID, *byte_ids(text)])
    assert (result.sources[0].documents_used, result.sources[0].documents_shared) == (1, 1)
    assert options["progress"].warnings == [
        "c4.json: too few documents to hold some out; the rows that judge the calibration share "
        "documents with it. Give more text."
    ]


def test_a_short_part_takes_whole_documents_that_the_other_does_not_need(tmp_path, tokenizer):
    fitting = [text for text in MARKED if not is_held_out(hash_document(text))][:40]
    result = build([write_c4(tmp_path, fitting)], tokenizer, num_samples=4, sequence_length=64)
    fit, held = halves(result, tokenizer)
    assert len(fit) == 27 and len(held) == 9
    assert not fit & held
    assert result.sources[0].documents_shared == 0


def test_a_second_copy_of_a_fitted_document_is_used_before_the_end_of_a_cut_one(
    tmp_path, tokenizer
):
    text = next(text for text in MARKED if not is_held_out(hash_document(text)))
    source, progress = write_c4(tmp_path, [text] * 9), Recorder()
    # Seven tokens a document: one row to fit, one held out.
    options = {"num_samples": 2, "sequence_length": 7, "progress": progress}
    result = build([source], tokenizer, **options)
    assert halves(result, tokenizer) == ({text}, {text})
    assert (result.sources[0].documents_used, result.sources[0].documents_shared) == (1, 1)
    assert len(progress.warnings) == 1


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([128], [13]),
        ([64, 32, 32], [6, 3, 3]),
        ([2, 1], [1, 0]),
        ([1, 1], [0, 1]),
        ([1], [0]),
        ([2], [1]),
    ],
)
def test_split_shares_holds_out_a_tenth_and_one_at_least(shares, expected):
    assert split_shares(shares) == expected


def test_rows_are_spread_evenly(tmp_path, tokenizer):
    result = build(mixed_sources(tmp_path), tokenizer, num_samples=90, sequence_length=8)
    fitted = result.row_sources[result.num_held_out :]
    half = len(fitted) // 2
    for position, source in enumerate(result.sources):
        in_first_half = fitted[:half].count(position)
        assert abs(in_first_half - (source.rows - source.held_out_rows) / 2) <= 2


def test_rows_depend_on_the_seed_not_on_the_directory_nor_on_global_random_state(
    tmp_path, tokenizer
):
    states = random.getstate(), np.random.get_state()[1].copy()
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        results.append(build(mixed_sources(tmp_path / name), tokenizer))
    first, again = results
    assert np.array_equal(first.tokens, again.tokens)
    assert first.to_dict()["sources"][2:] == again.to_dict()["sources"][2:]
    # Nor do they change between releases, or with the seed of Python's hashes.
    assert first.to_dict()["tokens_sha256"] == KNOWN_SHA256
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    other = build(mixed_sources(tmp_path / name), tokenizer, seed=2)
    assert first.row_sources != other.row_sources
    assert sorted(first.tokens.tolist()) != sorted(other.tokens.tolist())


def test_a_long_stream_is_read_only_as_far_as_needed(tmp_path, tokenizer):
    source = write_c4(tmp_path, [f"{number:99}" for number in range(500)])
    source.path.write_text(source.path.read_text("utf-8") + "{broken\n", "utf-8")
    result = build([source], tokenizer, num_samples=4, sequence_length=100)
    report = result.sources[0]
    assert report.documents_used == 4
    assert 4 < report.documents_read < 100


def test_more_is_read_where_the_first_pool_holds_too_few_tokens(tmp_path, tokenizer):
    # A pool holds 16 bytes for each token wanted, and here one document in fifty may be used.
    source = write_c4(tmp_path, [f"{number:99}" for number in range(2000)])
    options = {"evaluation_share": 0.02, "part": "evaluation"}
    result = build([source], tokenizer, num_samples=10, sequence_length=50, **options)
    assert result.tokens.shape == (10, 50)
    assert result.sources[0].documents_used == 5
    assert result.sources[0].documents_read > 16 * 500 / 99 + 1


def test_too_little_text_is_an_error_that_counts_every_source(tmp_path, tokenizer):
    sources = [write_c4(tmp_path, ["abcd"] * 10), write_alpaca(tmp_path)]
    with pytest.raises(CalibrationError) as caught:
        build(sources, tokenizer, num_samples=8, sequence_length=16)
    message = str(caught.value)
    assert f"{sources[0].path} (c4): 50 of 64 tokens" in message
    assert f"{sources[1].path} (alpaca): 64 of 64 tokens" in message
    assert "ask for fewer samples or a shorter sequence" in message


def test_id_outside_the_vocabulary_is_an_error(tmp_path, tokenizer):
    source = write_c4(tmp_path, ["abcd"] * 10)
    with pytest.raises(CheckpointError, match="id 256 .* vocab_size 256.*does not belong to this"):
        build([source], tokenizer, num_samples=1, sequence_length=4, vocab_size=256)


@pytest.mark.parametrize(
    ("weights", "num_samples", "expected"),
    [
        ([1], 7, [7]),
        ([1, 1, 1], 128, [43, 43, 42]),
        ([9, 1], 10, [9, 1]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([5, 3, 1], 4, [2, 1, 1]),
        ([1e-300, 1e-300], 3, [2, 1]),
    ],
)
def test_share_rows_by_largest_remainder(weights, num_samples, expected):
    sources = [CalibrationSource("text", Path(f"{i}"), w) for i, w in enumerate(weights)]
    assert share_rows(sources, num_samples) == expected


def test_share_rows_refuses_a_source_without_a_row():
    sources = [
        CalibrationSource("c4", Path("big.json"), 100.0),
        CalibrationSource("text", Path("small.txt"), 0.1),
    ]
    with pytest.raises(UsageError, match="would get no row:\n  - small.txt\nAsk for more samples"):
        share_rows(sources, 16)


def test_no_source_or_the_same_twice_is_a_usage_error(tmp_path, tokenizer):
    with pytest.raises(UsageError, match="No calibration source is given"):
        build([], tokenizer)
    source = write_c4(tmp_path, ["abcd"])
    again = CalibrationSource("c4", tmp_path / "tokenizer" / ".." / "c4.json")
    with pytest.raises(UsageError, match="c4.json is given twice"):
        build([source, again], tokenizer)


def test_marks_written_in_a_text_become_special_tokens_without_a_second_bos(tmp_path, tokenizer):
    path = tmp_path / "traces.txt"
    path.write_text(f"{BOS}{USER}q{ASSISTANT}a{EOS}", "utf-8")
    result = build([CalibrationSource("text", path)], tokenizer, num_samples=1, sequence_length=6)
    ids = [BOS_ID, USER_ID, *byte_ids("q"), ASSISTANT_ID, *byte_ids("a"), EOS_ID]
    assert result.tokens[0].tolist() == ids


class EchoWriter:
    """Answers with the last id of the prompt, and counts."""

    batch_size, max_prompt_tokens = 4, 8

    def __init__(self):
        self.batches = []

    def write(self, prompts):
        self.batches.append(len(prompts))
        assert all(len(prompt) <= 8 for prompt in prompts)
        return [[ASSISTANT_ID, prompt[2], EOS_ID] for prompt in prompts]

    def describe(self):
        return {"by": "echo"}


def test_a_writer_answers_only_as_many_prompts_as_the_rows_need(tmp_path, tokenizer):
    writer, text = EchoWriter(), write_numbers(tmp_path / "notes.txt", 100)
    sources = [write_alpaca(tmp_path), CalibrationSource("text", text)]
    result = build(sources, tokenizer, num_samples=2, sequence_length=16, writer=writer)
    # The only row of the text is held out.
    ids = result.tokens[1].tolist()
    # BOS, user mark, "q", the number, assistant mark; then the answer.
    assert ids[5:8] == [ASSISTANT_ID, *byte_ids("q"), EOS_ID]
    assert writer.batches == [4]
    assert [source.own_answers for source in result.sources] == [True, False]
    assert result.to_dict()["answers"] == {"by": "echo"}


def test_prompts_too_long_to_be_answered_are_left_out_and_counted(tmp_path, tokenizer):
    records = [{"instruction": "q" * (1 + 9 * (n % 2)), "output": "a"} for n in range(8)]
    source = write_alpaca(tmp_path, records)
    result = build([source], tokenizer, num_samples=1, sequence_length=28, writer=EchoWriter())
    assert result.sources[0].documents_skipped == 4
    assert result.sources[0].documents_used == 4

"""What the installed transformers makes of a directory, asked in its process of limited means."""

import json
import os
import time

import pytest
import transformers
from token_fixtures import their_tokenizer, write_files, write_json
from tokenizer_builders import build_backend, tokenizer_config, write_tokenizer

from vacc_deploy.errors import ProcessError
from vacc_deploy.text import library
from vacc_deploy.text.library import read_with_library, start_library
from vacc_deploy.text.probes import CHAT, PROBES


def write(folder, **changes):
    write_json(folder / "config.json", {"model_type": "llama", "vocab_size": 272})
    return write_tokenizer(folder, config=tokenizer_config(**changes))


def edit(folder, **sections):
    path = folder / "tokenizer.json"
    write_json(path, {**json.loads(path.read_text("utf-8")), **sections})
    return folder


def test_it_is_what_transformers_gives_in_this_process(tmp_path):
    reading, theirs = read_with_library(write(tmp_path)), their_tokenizer(tmp_path)
    assert reading.version == transformers.__version__ and not reading.error
    assert reading.class_name == type(theirs).__name__ and reading.is_byte_level
    texts = [text for _, text in PROBES]
    assert list(map(list, reading.ids)) == theirs(texts, add_special_tokens=False)["input_ids"]
    assert list(map(list, reading.opened)) == theirs(texts)["input_ids"]
    chat = theirs.apply_chat_template(list(CHAT), tokenize=False, add_generation_prompt=True)
    assert reading.chat == chat and not reading.chat_error
    assert list(reading.chat_ids) == theirs(chat, add_special_tokens=False)["input_ids"]


def test_a_form_that_is_not_of_bytes_is_told(tmp_path):
    decoder = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never"}
    reading = read_with_library(edit(write(tmp_path), decoder={**decoder, "split": False}))
    assert reading.is_byte_level is False


def test_the_date_of_a_template_is_that_of_our_own(tmp_path):
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert read_with_library(write(tmp_path, chat_template=template)).chat == (
        f"26 Jul 2024 {CHAT[0]['content']}"
    )


def test_a_template_that_fails_leaves_the_ids(tmp_path):
    reading = read_with_library(write(tmp_path, chat_template="{{ x.y.z }}"))
    assert reading.ids and reading.chat is None and "UndefinedError" in reading.chat_error


def test_a_class_of_other_models_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_worker", None)  # nothing may be asked
    write(tmp_path, tokenizer_class="TransfoXLTokenizer")
    reading = read_with_library(tmp_path)
    assert reading.error == (
        "it names the class TransfoXLTokenizer, and only those of Qwen, Llama and GPT-2 are loaded"
    )
    write(tmp_path, tokenizer_class=None)
    write_json(tmp_path / "config.json", {"model_type": "llama", "tokenizer_class": ["x"]})
    assert "it names the class ['x']" in read_with_library(tmp_path).error


def test_code_of_the_directory_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n", "utf-8")
    write(tmp_path, auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}, tokenizer_class=None)
    write_json(tmp_path / "config.json", {"model_type": "of-its-own", "vocab_size": 272})
    reading = read_with_library(tmp_path)
    assert not mark.exists()
    assert reading.version and not reading.ids and "code" in reading.error


def test_a_tokenizer_that_it_cannot_load_is_told(tmp_path):
    write_files(tmp_path, config={"tokenizer_class": "PreTrainedTokenizerFast"})
    (tmp_path / "tokenizer.json").write_text('{"model": 1}', "utf-8")
    reading = read_with_library(tmp_path)
    assert reading.version == transformers.__version__ and reading.error and not reading.ids
    assert len(reading.error) <= 301 and "\n" not in reading.error


def test_a_template_without_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "TOKENIZER_CPU_SECONDS", 0)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    reading = read_with_library(write(tmp_path, chat_template=loop))
    assert reading.error.startswith("with it transformers needs more than")
    assert "processor time" in reading.error and not reading.version


def test_a_tokenizer_without_bounds_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "TOKENIZER_MEMORY", 32 << 20)
    grow = {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "a" * 10}
    folder = edit(write(tmp_path), normalizer={"type": "Sequence", "normalizers": [grow] * 9})
    reading = read_with_library(folder)
    assert "MiB of memory" in reading.error and not reading.ids


def test_a_process_that_cannot_be_had_is_told(tmp_path, monkeypatch):
    class Broken:
        def request(self, *_, **__):
            raise ProcessError("The process cannot be started. Free memory.")

    monkeypatch.setattr(library, "_worker", Broken())
    reading = read_with_library(write(tmp_path))
    assert reading.error == "The process cannot be started. Free memory"


def test_it_is_begun_without_waiting(tmp_path, monkeypatch):
    def wait(directory):
        time.sleep(0.2)
        return directory

    monkeypatch.setattr(library, "read_with_library", wait)
    before = time.monotonic()
    future = start_library(tmp_path)
    assert time.monotonic() - before < 0.2 and future.result() == tmp_path

    def fail(directory):
        raise ValueError("no")

    monkeypatch.setattr(library, "read_with_library", fail)
    with pytest.raises(ValueError, match="no"):
        start_library(tmp_path).result()


def test_nothing_of_the_user_reaches_the_process(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    library._worker.close()
    assert read_with_library(write(tmp_path)).ids
    with open(f"/proc/{library._worker._process.pid}/environ", "rb") as file:
        values = file.read()
    assert b"secret" not in values and b"HF_HUB_OFFLINE=1" in values
    assert os.environ["HF_TOKEN"] == "secret" and build_backend()

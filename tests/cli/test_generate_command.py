"""``generate`` on the command line: the ways of asking, what a terminal shows, and the chat."""

import json
import os
import pty
import select
import subprocess
import sys
from types import SimpleNamespace

import pytest
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from ending_model import make_ending
from reference_logits import edit_json
from texts import ROOT
from transformers.utils import logging

from vacc_deploy.cli import cli
from vacc_deploy.cli import generate as generate_cli
from vacc_deploy.cli.chat import chat
from vacc_deploy.reference.generate import Responder


@pytest.fixture
def directory(tmp_path):
    return make_ending(tmp_path, 5)


def invoke(directory, *args, **options):
    words = ["generate", str(directory), "--max-new-tokens", "3", *map(str, args)]
    return CliRunner().invoke(cli, words, **options)


def on_terminal(monkeypatch):
    """Let the command believe that stdin and stdout are a terminal."""
    stream = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(generate_cli, "sys", SimpleNamespace(stdin=stream, stdout=stream))


def test_text_and_json_say_how_tokens_were_drawn(directory):
    result = invoke(directory, "--prompt", "hi")
    assert result.exit_code == 0, result.output
    assert "!!!\n\n[3 tokens in " in result.stdout and ", greedy, stopped at" in result.stdout
    result = invoke(directory, "--prompt", "hi", "--json")
    values = json.loads(result.stdout)
    assert values.pop("seconds") >= 0 and values == {
        "prompt": "hi",
        "text": "!!!",
        "num_prompt_tokens": 5,
        "num_new_tokens": 3,
        "finished": False,
        "sampling": {"greedy": True},
    }


def test_the_options_of_sampling_reach_the_model(directory):
    options = ("--temperature", 0.7, "--top-p", 0.9, "--top-k", 4, "--seed", 5)
    values = json.loads(invoke(directory, "--prompt", "hi", "--json", *options).stdout)
    assert values["sampling"] == {
        "greedy": False,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 4,
        "seed": 5,
        "repetition_penalty": 1.0,
    }
    edit_json(directory / "generation_config.json", do_sample=True)
    assert ", temperature 0.6, top-p 0.95, seed 0" in invoke(directory, "--prompt", "hi").stdout
    assert ", greedy" in invoke(directory, "--prompt", "hi", "--greedy").stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "exactly one of --prompt, --prompt-file and --interactive; got none of them."),
        (["--prompt", "a", "--prompt-file", "b"], "got --prompt and --prompt-file."),
        (["--prompt", "a", "--interactive"], "got --prompt and --interactive."),
        (["--interactive"], "--interactive needs a terminal, and stdin is none."),
        (["--interactive", "--json"], "--interactive cannot be used with --json."),
        (["--prompt", ""], "--prompt holds no text. Is a shell variable not set?"),
        (["--prompt", " \n"], "--prompt holds no text."),
        (["--prompt", "a", "--greedy", "--seed", "1"], "--greedy draws no tokens, so --seed"),
        (["--prompt", "a", "--temperature", "0"], "0.0 is not in the range"),
        (["--prompt", "a", "--top-p", "1.5"], "1.5 is not in the range"),
    ],
)
def test_wrong_usage_exits_2(directory, args, text):
    result = invoke(directory, *args)
    assert result.exit_code == 2 and text in result.stderr


def test_the_example_of_wrong_usage_can_be_copied(tmp_path):
    result = invoke(tmp_path / "my model")
    assert f"vacc-deploy generate '{tmp_path}/my model' --prompt 'What is 7 x 8?'" in result.stderr


def test_what_the_tokenizer_files_lack_is_said_on_stderr(directory):
    (directory / "added_tokens.json").write_text('{"<tool>": 260}')
    result = invoke(directory, "--prompt", "a")
    assert result.exit_code == 0
    assert (
        "Note: tokenizer.json lacks 1 token of added_tokens.json: '<tool>' (260)" in result.stderr
    )


def test_a_missing_directory_and_a_missing_file_exit_1(tmp_path):
    result = invoke(tmp_path / "nosuch", "--prompt", "a")
    assert result.exit_code == 1 and "nosuch" in result.stderr
    assert "tokenizer.json" not in result.stderr
    result = invoke(tmp_path, "--prompt-file", tmp_path / "no.txt")
    assert result.exit_code == 1 and "no.txt cannot be read: No such file" in result.stderr


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_whole_file_is_one_prompt(directory, tmp_path, way):
    path = tmp_path / "question.txt"
    path.write_text("two\nlines\n", "utf-8")
    if way == "file":
        result = invoke(directory, "--prompt-file", path, "--json")
    else:
        result = invoke(directory, "--prompt-file", "-", "--json", input="two\nlines\n")
    assert json.loads(result.stdout)["prompt"] == "two\nlines"


def test_json_lines_are_answered_each_by_itself(directory, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "hi"}\n{"prompt": "there"}\n', "utf-8")
    result = invoke(directory, "--prompt-file", path, "--json")
    answers = json.loads(result.stdout)["answers"]
    assert [(a["prompt"], a["text"]) for a in answers] == [("hi", "!!!"), ("there", "!!!")]
    assert "Answering: 2 of 2 prompts" in result.stderr
    text = invoke(directory, "--prompt-file", path).stdout
    assert "--- prompt 1 of 2: hi\n!!!\n\n[3 tokens" in text
    assert "]\n\n--- prompt 2 of 2: there\n!!!\n" in text


def without_rates(text):
    return [line.partition(" in ")[0] for line in text.splitlines()]


@pytest.mark.parametrize("name", ["one.txt", "two.jsonl"])
def test_a_terminal_shows_the_same_text_while_it_is_written(directory, tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_text('{"prompt": "hi"}\n{"prompt": "\\u001b[7m"}\n', "utf-8")
    piped = invoke(directory, "--prompt-file", path)
    pieces = []
    show = generate_cli._show
    monkeypatch.setattr(generate_cli, "_show", lambda text: (pieces.append(text), show(text)))
    on_terminal(monkeypatch)
    shown = invoke(directory, "--prompt-file", path)
    assert pieces.count("!") == (3 if name == "one.txt" else 6)
    assert without_rates(shown.stdout) == without_rates(piped.stdout)
    assert "\x1b" not in shown.stdout
    # Under --json nothing but the object is printed, also on a terminal.
    assert json.loads(invoke(directory, "--prompt-file", path, "--json").stdout)


def test_the_library_s_bar_stays_off_stderr(tmp_path):
    source = write_checkpoint(tmp_path / "m")
    logging.enable_progress_bar()
    try:
        result = invoke(source, "--prompt", "hi")
    finally:
        logging.disable_progress_bar()
    assert result.exit_code == 0 and result.stderr == ""


# ---- the chat ----------------------------------------------------------------------------------


def talk(directory, lines, end=EOFError, max_new_tokens=3):
    """Return what a chat showed, and the histories with which the model was asked."""
    shown, histories, remaining = [], [], list(lines)
    responder = Responder(directory, max_new_tokens=max_new_tokens)
    answer = responder.answer

    def read_line(_mark):
        if not remaining:
            raise end
        return remaining.pop(0)

    def remember(prompt, *, history, **options):
        histories.append([message["content"] for message in history])
        return answer(prompt, history=history, **options)

    responder.answer = remember
    chat(responder, show=shown.append, read_line=read_line)
    return "".join(shown), histories, remaining


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_chat_keeps_its_history_until_it_is_cleared(directory, end):
    shown, histories, _ = talk(directory, ["hi", "", " you ", "/clear", "again"], end)
    assert histories == [[], ["hi", "!!!"], []]
    assert shown.count("!!!\n\n[3 tokens in ") == 3


def test_exit_ends_a_chat(directory):
    _, histories, remaining = talk(directory, ["hi", " /exit ", "more"])
    assert (len(histories), remaining) == (1, ["more"])


def test_a_turn_that_is_too_long_is_one_sentence_and_the_chat_goes_on(directory, capsys):
    edit_json(directory / "config.json", max_position_embeddings=32)
    edit_json(directory / "config_vacc.json", max_position_embeddings=32)
    _, histories, _ = talk(directory, ["hi", "a" * 30, "so"])
    # What was refused is not in the history.
    assert histories == [[], ["hi", "!!!"], ["hi", "!!!"]]
    assert (
        "are more than the model's context of 32. Type /clear to begin" in capsys.readouterr().err
    )


def test_ctrl_c_in_an_answer_ends_a_chat(directory):
    responder = Responder(directory)

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    responder.answer = interrupt
    chat(responder, show=print, read_line=lambda _mark: "hi")


def test_a_chat_on_a_real_terminal(directory):
    leader, follower = pty.openpty()
    words = ["generate", str(directory), "--interactive", "--max-new-tokens", "3"]
    command = [sys.executable, "-m", "vacc_deploy", *words]
    streams = {"stdin": follower, "stdout": follower, "stderr": subprocess.PIPE}
    env = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    keys, got = [b"hi \xff\n", b"\x04"], b""  # \xff is no UTF-8
    with subprocess.Popen(command, cwd=ROOT, env=env, **streams) as job:
        os.close(follower)
        while True:
            if not select.select([leader], [], [], 60)[0]:
                job.kill()
            try:
                got += os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            # Keys that are pressed earlier may be lost while readline changes the terminal.
            if keys and got.count(b">>> ") > 2 - len(keys):
                os.write(leader, keys.pop(0))
        errors = job.stderr.read().decode()
    os.close(leader)
    assert job.returncode == 0, errors
    assert b">>> " in got and b"!!!\r\n\r\n[3 tokens in " in got
    assert errors.startswith("/clear begins a new conversation") and "Traceback" not in errors

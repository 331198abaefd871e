"""Every command takes a directory, a repository or a model name, and says what to give instead."""

import pytest
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from reference_logits import edit_json

from vacc_deploy.cli import cli
from vacc_deploy.lookup import hub


def invoke(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


COMMANDS = (
    ("prepare", "{}", "--link-mode", "copy", "--dry-run"),
    ("quantize", "{}", "--calibration", "c4=a b", "--no-scale-search"),
    ("verify", "{}", "--reference", "model"),
    ("verify", "model", "--reference", "{}"),
    ("evaluate", "{}", "--task", "text", "--data", "words=a b", "--reference", "model"),
    ("generate", "{}", "--prompt", "What is 7 x 8?"),
    ("export-onnx", "{}", "--output", "o"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model")
    (tmp_path / "a b").write_text('{"text": "a"}')
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_that_does_what_was_meant_is_complete(folder, words):
    given = [word.format("model/model.safetensors") for word in words]
    result = invoke(*given)
    assert (result.exit_code, result.stdout) == (1, "")
    command = [word.format("model") for word in words]
    quoted = " ".join(f"'{word}'" if " " in word else word for word in command)
    # Options come in the order of the help.
    assert sorted(result.stderr.splitlines()[1].split()) == sorted(["vacc-deploy", *quoted.split()])
    assert result.stderr.splitlines()[1].startswith(f"  vacc-deploy {command[0]} model")
    assert "Give its directory:\n" in result.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_does_not_exist_is_named(folder, words):
    given = [word.format("nothing/here.gguf") for word in words]
    result = invoke(*given)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: nothing/here.gguf does not exist")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_repository_is_looked_up_in_the_cache(folder, words):
    given = [word.format("Qwen/Qwen2.5-7B") for word in words]
    result = invoke(*given)
    assert result.exit_code == 1
    assert "Qwen/Qwen2.5-7B is not in the Hugging Face cache" in result.stderr
    assert ("a dry run downloads nothing" in result.stderr) is ("--dry-run" in words)


@pytest.mark.parametrize("command", [("quantize",), ("export-onnx", "--output", "o")])
def test_a_dry_run_of_a_repository_downloads_nothing(folder, command):
    result = invoke(*command, "Qwen/Qwen2.5-7B", "--dry-run")
    assert result.exit_code == 1 and "a dry run downloads nothing" in result.stderr


REPOSITORY = "some-one/My.Fine_tune"


@pytest.fixture
def downloads(folder, monkeypatch):
    """Let the hub have the model of ``folder``; return what is asked of it."""
    asked = []

    def download(repository, patterns):
        asked.append(patterns)
        return folder / "model"

    monkeypatch.setattr(hub, "_download", download)
    return asked


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("quantize", REPOSITORY), 1, "My.Fine_tune-int8 exists and is not empty."),
        (("quantize", REPOSITORY, "--output", "full"), 1, "full exists and is not empty."),
        (
            ("quantize", REPOSITORY, "--output", "o", "--device", "cuda:99"),
            2,
            "--device cuda:99: torch",
        ),
        (
            ("quantize", REPOSITORY, "--output", "o", "--calibration", "c4=nosuch"),
            1,
            "nosuch does not exist. Give the path of a data file.",
        ),
        (
            ("quantize", REPOSITORY, "--output", "o", "--calibration", "c4=notes.txt"),
            1,
            "notes.txt is plain text, not C4.",
        ),
        (("export-onnx", REPOSITORY, "--output", "full"), 1, "full exists and is not empty."),
        (
            ("verify", REPOSITORY),
            2,
            f"{REPOSITORY} is a repository, which does not say which float model it was made from. "
            f"Name it:\n  vacc-deploy verify {REPOSITORY} --reference REFERENCE\n",
        ),
        (("verify", REPOSITORY, "--reference", "nosuch"), 1, "nosuch does not exist."),
        (
            ("verify", REPOSITORY, "--reference", "a/b", "--text", "nosuch"),
            1,
            "nosuch cannot be read",
        ),
    ],
)
def test_what_costs_nothing_is_refused_before_a_download(folder, downloads, words, code, message):
    for name in ("My.Fine_tune-int8", "full"):
        (folder / name).mkdir()
        (folder / name / "x").touch()
    (folder / "notes.txt").write_text("Just text.")
    result = invoke(*words)
    assert result.exit_code == code and f"Error: {message}" in result.stderr, result.stderr
    assert downloads == []


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        (("export-onnx", "--output", "o"), {}, f" Run: vacc-deploy prepare {REPOSITORY}\n"),
        (("export-onnx", "--output", "o", "--seq-len", "9"), {}, "--seq-len: got 9, expected a"),
        (
            ("quantize", "--calibration", "text=t", "--seq-len", "64"),
            {"max_position_embeddings": 32},
            "Sequences of 64 tokens are longer than",
        ),
    ],
)
def test_what_the_configuration_tells_is_refused_before_the_weights_are_downloaded(
    folder, downloads, words, change, message
):
    edit_json(folder / "model" / "config.json", **change)
    (folder / "t").write_text("Just text.")
    result = invoke(words[0], REPOSITORY, *words[1:])
    assert result.exit_code in (1, 2) and message in result.stderr, result.stderr
    assert downloads == [["config.json", "adapter_config.json"]]


@pytest.mark.parametrize("option", [(), ("--weights",), ("--model",)])
def test_prepare_proposes_its_short_form(folder, option):
    result = invoke("prepare", *option, "model/config.json", "--output", "o")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1] == "  vacc-deploy prepare model --output o"


def test_prepare_keeps_the_model_that_was_named(folder):
    given = ("--model", "distill-qwen-7b", "--weights", "model/config.json")
    line = invoke("prepare", *given).stderr.splitlines()[1]
    assert line == "  vacc-deploy prepare model --model Distill-Qwen-7B"


def test_the_formats_of_a_run_are_refused_where_float_weights_are_needed(folder):
    for name in ("int8", "gptq"):
        (folder / "m-quantized" / name).mkdir(parents=True)
        (folder / "m-quantized" / name / "config.json").touch()
    manifest = '{"format_version": 1, "source": {"path": "../model"}}'
    (folder / "m-quantized" / "vacc_deploy.json").write_text(manifest)
    for command in ("prepare", "quantize"):
        text = invoke(command, "m-quantized").stderr
        assert f"\n  vacc-deploy {command} {folder}/model\n" in text
    assert "\n  vacc-deploy verify m-quantized/int8\n" in invoke("verify", "m-quantized").stderr


@pytest.mark.parametrize("words", (*COMMANDS, ("yaml", "{}")), ids=" ".join)
@pytest.mark.parametrize("given", ["x" * 300, f"model/{'x' * 300}", f"{'x' * 300}/model"])
def test_a_name_that_no_file_can_have_does_not_exist(folder, words, given):
    result = invoke(*(word.format(given) for word in words))
    assert result.exit_code == 1
    assert f"{given} does not exist" in result.stderr and "too long" not in result.stderr


def test_a_model_or_weights_of_such_a_name(folder):
    assert "x does not exist." in invoke("prepare", "--weights", "x" * 300).stderr
    result = invoke("prepare", "x" * 300, "--model", "Distill-Qwen-7B")
    assert "x does not exist." in result.stderr
    result = invoke("prepare", "--model", "x" * 300)
    assert "too long" not in result.stderr and result.exit_code == 2

"""Each thing that users give in place of a checkpoint directory is named, with what to give."""

import shlex
import shutil
import time
from pathlib import Path

import pytest
from checkpoint_builders import write_checkpoint, write_json

from vacc_deploy.errors import CheckpointError
from vacc_deploy.lookup.recognize import recognize, recognize_missing

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SEVEN = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


def text_of(path, **options):
    found = recognize(path, **options)
    assert found is not None
    return found.to_text(lambda place: f"run {place}")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("layout", [{}, {"shards": 2}])
def test_a_checkpoint_is_left_to_its_reader(tmp_path, layout):
    directory = write_checkpoint(tmp_path / "m", **layout)
    # Beside the weights may lie what else a trainer or a repository leaves.
    touch(directory / "checkpoint-5" / "config.json")
    for name in ("adapter_config.json", "m.gguf", "m.onnx", "training_args.bin", "m.zip"):
        touch(directory / name)
    assert recognize(directory) is None
    for path in directory.glob("*.safetensors"):
        path.unlink()
        path.symlink_to(directory / "gone")
    assert recognize(directory) is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.txt"])
def test_a_checkpoint_without_safetensors_is_left_to_its_reader_too(tmp_path, name):
    directory = write_checkpoint(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / name)
    assert recognize(directory) is None


# ---- the hub's cache ---------------------------------------------------------------------------


def write_cache(tmp_path, commits=(COMMIT,), main=COMMIT):
    folder = tmp_path / "hub" / "models--some--Model"
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots").mkdir(parents=True, exist_ok=True)
    (folder / "blobs").mkdir()
    if main:
        touch(folder / "refs" / "main").write_text(main)
    return folder


@pytest.mark.parametrize("inside", ["", "snapshots", "refs", "blobs"])
def test_a_folder_of_the_cache_names_the_snapshot_of_main(tmp_path, inside):
    folder = write_cache(tmp_path, ["a" * 40, COMMIT])
    touch(folder / "blobs" / "x")
    assert text_of(folder / inside) == (
        f"{folder / inside} is the folder of some/Model in the Hugging Face cache. The checkpoint "
        f"is its snapshot:\n  run {folder / 'snapshots' / COMMIT}"
    )


def test_a_folder_of_the_cache_from_within(tmp_path, monkeypatch):
    monkeypatch.chdir(write_cache(tmp_path))
    assert text_of(Path(".")).endswith(f"\n  run {Path.cwd() / 'snapshots' / COMMIT}")


def test_a_folder_of_the_cache_without_the_branch_main(tmp_path):
    folder = write_cache(tmp_path, main="gone")
    assert text_of(folder).endswith(f"\n  run {folder / 'snapshots' / COMMIT}")


def test_a_folder_of_the_cache_without_a_snapshot(tmp_path):
    folder = write_cache(tmp_path, ())
    assert text_of(folder).endswith("It holds no finished download. Run:\n  hf download some/Model")


@pytest.mark.parametrize("inside", ["hub", ""])
def test_the_cache_itself_lists_its_models(tmp_path, inside):
    folder = write_cache(tmp_path)
    assert text_of(tmp_path / inside) == (
        f"{tmp_path / inside} is the Hugging Face cache, which holds many models. Give the "
        f"snapshot of one:\n  run {folder / 'snapshots' / COMMIT}"
    )


def test_a_file_or_another_directory_of_the_name_hub_is_no_cache(tmp_path):
    touch(tmp_path / "a" / "hub")
    touch(tmp_path / "b" / "hub" / "x")
    assert recognize(tmp_path / "a") is None and recognize(tmp_path / "b") is None


# ---- other formats -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("DeepSeek-R1-0528-Qwen3-8B-UD-Q4_K_XL.gguf", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"),
        ("R1-Distill-Qwen-7B-uncensored.Q8_0.gguf", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ("qwen3-8b-f16-00001-of-00002.gguf", "Qwen/Qwen3-8B"),
        (
            "deepseek-ai_DeepSeek-R1-0528-Qwen3-8B-Q4_K_M.gguf",
            "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        ),
        ("QwQ-32B.gguf", "Qwen/QwQ-32B"),
        ("Qwen3-8B-Base-Q8_0.gguf", None),
        ("my-Qwen3-8B-Q8_0.gguf", None),
    ],
)
def test_a_gguf_file_that_is_named_after_a_known_model(tmp_path, name, repository):
    instead = recognize(touch(tmp_path / name)).instead
    assert instead == (() if repository is None else (repository,))


def test_gguf_file_and_directory(tmp_path):
    file = touch(tmp_path / "m" / "DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf")
    rest = (
        ", which holds weights for llama.cpp. vacc-deploy reads safetensors. Give the float "
        f"checkpoint that it was made from:\n  run {SEVEN}"
    )
    assert text_of(file) == f"{file} is a GGUF file{rest}"
    assert text_of(file.parent) == f"{file.parent} holds a model as a GGUF file{rest}"
    other = touch(tmp_path / "x" / "other.GGUF")
    assert text_of(other).endswith(" Give the float checkpoint that it was made from.")


@pytest.mark.parametrize("has_config", [False, True])
def test_an_adapter_is_to_be_merged_into_its_base_model(tmp_path, has_config):
    directory = tmp_path / "my lora"
    touch(directory / "adapter_model.safetensors")
    if has_config:
        write_checkpoint(directory)
        (directory / "model.safetensors").unlink()
    base = "\x1b[2J" + "x" * 1000
    write_json(directory / "adapter_config.json", {"base_model_name_or_path": base})
    text = text_of(directory)
    assert text.startswith(f"{directory} is a LoRA adapter, not a whole model. Merge it into its")
    assert "'\\x1b[2Jxxx" in text and "\x1b" not in text and "x" * 200 not in text
    command = next(line for line in text.splitlines() if line.startswith("  python"))
    program, option, code, *paths = shlex.split(command)
    assert (program, option, paths) == ("python3", "-c", [str(directory), f"{directory}-merged"])
    compile(code, "advice", "exec")
    assert text.endswith(f"Then use it:\n  run {directory}-merged")
    assert text_of(directory / "adapter_model.safetensors") == text


@pytest.mark.parametrize("values", [None, [], {}, {"base_model_name_or_path": 5}])
def test_an_adapter_that_does_not_say_its_base_model(tmp_path, values):
    touch(tmp_path / "adapter_model.bin")
    if values is not None:
        write_json(tmp_path / "adapter_config.json", values)
    assert "Merge it into its base model first" in text_of(tmp_path)


def test_an_adapters_file_of_gigabytes_is_not_read(tmp_path):
    with touch(tmp_path / "adapter_config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match="holds more than 1,048,576 bytes"):
        recognize(tmp_path)


@pytest.mark.parametrize(
    ("name", "command"),
    [("m.zip", "unzip"), ("m.tar", "tar -xf"), ("m.tar.gz", "tar -xf"), ("m.7z", "7z x")],
)
def test_an_archive_is_to_be_unpacked(tmp_path, name, command):
    path = touch(tmp_path / "a folder" / name)
    expected = (
        f"{path} is an archive. Unpack it, then give the directory that holds config.json:\n"
        f"  {command} {shlex.quote(str(path))}"
    )
    assert text_of(path) == text_of(path.parent) == expected


def test_a_compile_file_names_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "model")
    path = Path("a.yaml")
    for stated in ("./model", "'model'", '"model"  '):
        path.write_text(f"name: x\nmodel:\n  checkpoint: {stated}\n  other: 5\n")
        assert text_of(path) == (
            "a.yaml is a YAML file, as vamc reads it, not a checkpoint. It names this directory:\n"
            "  run model"
        )
    for text in ("checkpoint: gone\n", "x: y\n", "checkpoint:\n", "\xff"):
        path.write_text(text, "latin-1")
        assert text_of(path).endswith(" Give the directory that its line 'checkpoint:' names.")


def test_onnx_graphs_name_what_they_were_exported_from(tmp_path):
    source, out = write_checkpoint(tmp_path / "model"), tmp_path / "onnx"
    touch(out / "prefill.onnx")
    assert text_of(out) == f"{out} holds ONNX graphs, not a checkpoint."
    manifest = {"format_version": 1, "command": "export-onnx", "source": {"path": "../model"}}
    write_json(out / "vacc_deploy.json", manifest)
    assert text_of(out).endswith(f" They were exported from:\n  run {source}")
    assert "is an ONNX graph." in text_of(out / "prefill.onnx")


def test_a_diffusers_pipeline(tmp_path):
    touch(tmp_path / "model_index.json")
    touch(tmp_path / "unet" / "config.json")
    assert "is a diffusers pipeline, which makes pictures" in text_of(tmp_path)


# ---- files of a checkpoint, and directories of checkpoints --------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "optimizer.pt", "x.bin"])
def test_a_file_of_a_checkpoint_is_answered_with_its_directory(tmp_path, monkeypatch, name):
    path = write_checkpoint(tmp_path / "m") / name
    path.touch()
    assert text_of(path) == (
        f"{path} is one file of a checkpoint. Give its directory:\n  run {path.parent}"
    )
    monkeypatch.chdir(path.parent)
    assert text_of(Path(name)).endswith(":\n  run .")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_and_to_be_converted(tmp_path, name):
    text = text_of(touch(tmp_path / name))
    assert "is a pickle file, which can run code when read, so it is refused. Convert it" in text


def test_any_other_file(tmp_path):
    path = touch(tmp_path / "notes.txt")
    assert text_of(path) == (
        f"{path} is a file. Give the directory of a checkpoint, with config.json in it."
    )


def test_a_trainers_directory_names_the_last_checkpoint_first(tmp_path):
    for step in (5, 500, 50):
        touch(tmp_path / f"checkpoint-{step}" / "config.json")
    touch(tmp_path / "training_args.bin")
    expected = [f"  run {tmp_path}/checkpoint-{step}" for step in (500, 50, 5)]
    head, *lines = text_of(tmp_path).splitlines()
    assert head.endswith("each in a directory of its own. Give one, for example the last:")
    assert lines == expected


def test_the_formats_of_one_run(tmp_path):
    source, out = write_checkpoint(tmp_path / "model"), tmp_path / "model-quantized"
    for name in ("int8", "gptq"):
        touch(out / name / "config.json")
    manifest = {"format_version": 1, "command": "quantize", "source": {"path": "../model"}}
    write_json(out / "vacc_deploy.json", manifest)
    what = f"{out} holds a run of quantize in several formats, each in its directory: gptq/, int8/."
    assert text_of(out) == f"{what} Give one of them:\n  run {out}/gptq\n  run {out}/int8"
    assert text_of(out, needs_float=True) == (
        f"{what} They are quantized already. Give the float model they were made from:\n"
        f"  run {source}"
    )
    shutil.rmtree(source)
    assert text_of(out, needs_float=True) == f"{what} They are quantized already."


def test_a_directory_of_models_lists_them_up_to_ten(tmp_path):
    for number in range(12):
        touch(tmp_path / f"m{number:02}" / "config.json")
    lines = text_of(tmp_path).splitlines()
    assert lines[0] == f"{tmp_path} is not a checkpoint, but holds some. Give one of them:"
    assert lines[1] == f"  run {tmp_path}/m00" and lines[-1] == "  and 2 more" and len(lines) == 12
    (tmp_path / "vacc_deploy.json").touch()
    assert "m09/." in text_of(tmp_path, needs_float=True)


def test_what_an_unfinished_run_left(tmp_path):
    touch(tmp_path / ".vacc-deploy-partial")
    assert "is what an unfinished run left. Run the same command again" in text_of(tmp_path)


def test_an_empty_directory(tmp_path):
    assert text_of(tmp_path).startswith(f"{tmp_path} is empty.")


# ---- paths that do not exist -------------------------------------------------------------------


def test_a_missing_path_suggests_names_that_are_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "models" / "qwen2-0.5b")
    assert text_of(Path("models/qwen2-0.5")) == (
        "models/qwen2-0.5 does not exist. Did you mean:\n  run models/qwen2-0.5b"
    )
    assert text_of(tmp_path / "model" / "qwen2-0.5b").endswith(
        f" there is no {tmp_path / 'model'}. Did you mean:\n  run {tmp_path}/models/qwen2-0.5b"
    )
    lines = text_of(Path("Distil-Qwen-7b")).splitlines()
    assert lines[:2] == ["Distil-Qwen-7b does not exist. Did you mean:", "  run Distill-Qwen-7B"]


def test_a_missing_path_like_no_other_says_what_can_be_given(tmp_path):
    assert text_of(tmp_path / "zzz" / "..") == (
        f"{tmp_path}/zzz/.. does not exist: there is no {tmp_path}/zzz. Give the directory of a "
        "checkpoint, the id of a repository (owner/name), or a name that vacc-deploy models lists."
    )


def test_a_path_below_a_file(tmp_path):
    path = touch(tmp_path / "file")
    assert text_of(path / "x").startswith(f"{path / 'x'} does not exist: {path} is a file.")


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    assert text_of(tmp_path / "link") == f"{tmp_path}/link is a link to gone, which does not exist."


def test_a_directory_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied."):
        recognize(tmp_path)


def test_a_file_of_line_ends_is_recognised_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text("\n" * (1 << 19))
    started = time.process_time()
    recognize(tmp_path / "a.yaml")
    assert time.process_time() - started < 1


def test_what_was_not_made_yet_is_made_by_the_command_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "DeepSeek-R1-Distill-Qwen-7B-vacc"
    prepare = "Make it first:\n  vacc-deploy prepare Distill-Qwen-7B"
    assert recognize_missing(Path(name)).to_text().endswith(prepare)
    both = recognize_missing(Path(f"{name}-int8")).to_text()
    assert both.endswith(f"{prepare}\n  vacc-deploy quantize {name}")
    Path(name).mkdir()
    codes = recognize_missing(Path(f"{name}-int8-codes")).to_text()
    assert codes.endswith(f"Make it first:\n  vacc-deploy quantize {name} --format int8")
    Path("my tune-vacc").mkdir()
    own = recognize_missing(Path("my tune-vacc-int8")).to_text()
    assert own.endswith("Make it first:\n  vacc-deploy quantize 'my tune-vacc'")
    assert "Make it first" not in recognize_missing(Path("other-vacc")).to_text()

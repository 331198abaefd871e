"""What the user typed becomes a directory; the network is asked for a repository only."""

import pytest
from checkpoint_builders import write_checkpoint
from huggingface_hub.utils import validate_repo_id

from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.lookup import locate as module
from vacc_deploy.lookup.hub import Source
from vacc_deploy.lookup.locate import find_repository, locate
from vacc_deploy.models.catalog import MODELS

SEVEN = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Work in an empty directory; return the list of repositories that the hub is asked for."""
    repositories = []

    def fetch(repository, **options):
        repositories.append(repository)
        return Source(tmp_path, repository, "revision")

    monkeypatch.setattr(module, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    return repositories


def refused(given, **options):
    with pytest.raises(CheckpointError) as caught:
        locate(given, **options)
    return str(caught.value)


def test_a_local_directory_wins_over_a_repository_and_a_model(asked, tmp_path):
    for name in ("owner/name", SEVEN, "Distill-Qwen-7B"):
        directory = write_checkpoint(tmp_path / name)
        for given in (name, f"{name}/", directory, directory.relative_to(tmp_path)):
            assert locate(given).directory.resolve() == directory
        assert locate(name).repository is None
    assert locate("owner/name").name == "name" and asked == []


def test_names_of_the_catalogue_and_repositories_are_fetched(asked):
    for given in ("Distill-Qwen-7B", "r1-distill-qwen-7b", SEVEN, SEVEN.lower(), f"{SEVEN}/"):
        assert locate(given).name == "DeepSeek-R1-Distill-Qwen-7B"
    assert set(asked) == {SEVEN}
    assert locate("Qwen/Qwen2.5-7B").name == "Qwen2.5-7B"
    assert asked[-1] == "Qwen/Qwen2.5-7B"


@pytest.mark.parametrize("model", MODELS.values(), ids=str)
def test_every_alias_stands_for_its_repository(model):
    assert {find_repository(alias) for alias in model.aliases} == {model.repository}


@pytest.mark.parametrize(
    "given",
    [
        *(
            "./owner/model",
            "../owner/model",
            "/no/model",
            "model",
            "a/b/c",
            "owner/",
            "owner/model/",
        ),
        *("owner/model.gguf", "owner/model.safetensors", "owner/a.yaml", "owner/model.ZIP"),
        *("here/model", "owner/a--b", "owner/a..b", "owner/model.git", "owner/.model", "owner/a b"),
        *("owner/" + "x" * 97, "deepseek-ai/DeepSeek-R1-Distill-Qwen-8B", "owner/m\n"),
    ],
)
def test_nothing_else_asks_the_network(asked, tmp_path, given):
    (tmp_path / "here").mkdir()
    assert " does not exist" in refused(given)
    assert asked == []


@pytest.mark.parametrize(
    "text", ["a/b", "A-b_c.d/E-f_g.h", "1/2", "o/" + "x" * 96, "o" * 96 + "/x"]
)
def test_what_is_taken_for_a_repository_is_one_by_the_hubs_own_rule(text):
    assert find_repository(text) == text
    validate_repo_id(text)


def test_a_text_that_is_too_long_for_a_file_is_no_repository():
    assert find_repository("x" * 300) is None


def test_an_almost_right_path_is_no_repository(asked, tmp_path):
    write_checkpoint(tmp_path / "models" / "tiny")
    text = refused("modles/tiny", again=lambda place: f"run {place}")
    assert text == (
        f"modles/tiny does not exist: there is no {tmp_path / 'modles'}. Did you mean:\n"
        f"  run {tmp_path / 'models/tiny'}"
    )
    assert asked == []


def test_a_path_below_a_directory_may_be_meant_as_a_repository(asked, tmp_path):
    (tmp_path / "Qwen").mkdir()
    assert refused("Qwen/Qwen2.5-7B").endswith(
        "\nIf the repository of this name is meant, run first:\n"
        "  hf download Qwen/Qwen2.5-7B --local-dir Qwen/Qwen2.5-7B"
    )
    assert "hf download" not in refused("Qwen/model.gguf")


@pytest.mark.parametrize(
    "page",
    [
        "https://huggingface.co/Qwen/Qwen2.5-7B",
        "https://hf-mirror.com/Qwen/Qwen2.5-7B/tree/main?x=y",
        "https://modelscope.cn/models/Qwen/Qwen2.5-7B/",
    ],
)
def test_a_web_page_is_answered_with_its_repository(asked, page):
    assert refused(page, again=lambda place: f"run {place}") == (
        f"{page} is a web page. Give the id of its repository:\n  run Qwen/Qwen2.5-7B"
    )


def test_the_home_directory_that_the_shell_left_is_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "model")
    assert locate("~/model").directory == tmp_path / "model"


def test_an_empty_text_is_wrong_usage():
    with pytest.raises(UsageError, match="is an empty text. Is the shell variable set?"):
        locate("")


def test_a_dry_run_says_that_it_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("Qwen/Qwen2.5-7B", may_download=False) == (
        "There is no directory Qwen/Qwen2.5-7B. Qwen/Qwen2.5-7B is not in the Hugging Face cache, "
        "and a dry run downloads nothing. Run it without --dry-run, or give a directory."
    )


def test_what_is_no_checkpoint_is_refused_with_the_command(tmp_path):
    (tmp_path / "out" / "checkpoint-500").mkdir(parents=True)
    text = refused(tmp_path / "out", again=lambda place: f"run {place}")
    assert text.endswith(f"\n  run {tmp_path / 'out' / 'checkpoint-500'}")

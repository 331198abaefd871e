"""Commands in front of files that this user may not read or write."""

import errno

import click
import pytest
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from closed_files import OWNER, as_user, open_directory

import vacc_deploy.vamc.compile_file  # noqa: F401  (no import may be left for the other user)
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.cli import ErrorGroup, cli
from vacc_deploy.errors import CheckpointError
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.verify import verify
from vacc_deploy.text.tokenizer import Tokenizer

SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def place():
    with open_directory() as path:
        yield path


@pytest.fixture
def source(place):
    return write_checkpoint(place / "m", shards=2)


def refused(function, *args, **options):
    with as_user(), pytest.raises(CheckpointError) as caught:
        function(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", [SHARD, INDEX, "config.json"])
def test_a_closed_file_of_a_checkpoint_is_never_to_be_downloaded(source, name):
    (source / name).chmod(0)
    text = refused(Checkpoint.open, source)
    reason = f"cannot be read: Permission denied (mode 0000, owned by {OWNER}). "
    assert f"{name} {reason}" in text and "chmod " in text
    assert "ownload" not in text


def test_every_closed_weight_file_is_listed_in_one_error(source):
    for path in source.glob("*.safetensors"):
        path.chmod(0)
    text = refused(Checkpoint.open, source)
    assert text.startswith(f"Not all of {source} can be read:\n  - {SHARD} cannot be read: ")
    assert text.count("Permission denied") == 2


def test_a_closed_tokenizer_stops_prepare_before_anything_is_written(source, place):
    (source / "tokenizer.json").chmod(0)
    place.chmod(0o777)
    text = refused(prepare, weights=source, output=place / "out")
    assert "tokenizer.json cannot be read: Permission denied (mode 0000" in text
    assert [path.name for path in place.iterdir()] == ["m"]
    assert "ownload" not in refused(Tokenizer.from_dir, source)


def test_a_closed_directory_is_told_as_such(source, place):
    place.chmod(0)
    text = refused(Checkpoint.open, source)
    place.chmod(0o755)
    assert text.startswith(f"{source} cannot be read: Permission denied ({place} has mode 0000")


@pytest.mark.parametrize("closed", ["file", "directory"])
def test_verify_whose_reference_is_closed_names_the_option(source, place, closed):
    deployed = quantize(source, output=place / "q", options=QuantizeOptions("rtn")).output_dir
    target = source / SHARD if closed == "file" else source
    target.chmod(0)
    text = refused(verify, deployed)
    target.chmod(0o755)
    assert text.startswith(f"{deployed} was made from {source}, which cannot be read: ")
    # A new line where a command line stands before it.
    advice = "Or give another copy of the float model with --reference DIR."
    assert " ".join(text.split()).endswith(advice)


@pytest.mark.parametrize(
    ("link_mode", "is_noted"), [("auto", True), ("symlink", True), ("copy", False)]
)
def test_prepare_notes_a_link_to_weights_that_others_cannot_read(
    source, place, link_mode, is_noted
):
    for path in source.glob("*.safetensors"):
        path.chmod(0o600)
    for dry_run in (True, False):
        result = prepare(weights=source, output=place / "o", link_mode=link_mode, dry_run=dry_run)
        note = (
            "weight files have mode 0600, and a link keeps it: other users, such as that of a "
            "service, cannot read them. Prepare with --link-mode copy, or run: chmod a+r "
            f"{source}/*.safetensors"
        )
        assert (note in result.notes) == is_noted
    is_readable = (place / "o" / SHARD).stat().st_mode & 0o004
    assert bool(is_readable) != is_noted


@pytest.mark.parametrize(
    "name",
    ["NOTICE", "README.md", "config.json", INDEX, "tokenizer.json", SHARD, "model.safetensors"],
)
def test_a_link_to_what_this_user_may_not_see_is_a_link_that_leads_out(source, place, name):
    """Who is told to ask for access would hand it to whoever made the link."""
    closed = place / "closed"
    closed.mkdir()
    (closed / "secret").write_text("{}")
    closed.chmod(0)
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(closed / "secret")
    arguments = ["prepare", str(source), "--output", str(place / "out"), "--dry-run"]
    with as_user():
        result = CliRunner().invoke(cli, arguments)
    closed.chmod(0o755)
    assert result.exit_code == 1
    assert f"{source / name} is a link to '{closed}/secret', outside of" in result.stderr
    assert "Ask " not in result.stderr


@pytest.mark.parametrize("name", ["more.safetensors", "hub"])
def test_such_a_link_under_any_name_ends_no_command_without_a_word_of_it(place, name):
    source, closed = write_checkpoint(place / "m", shards=2, with_index=False), place / "closed"
    closed.mkdir()
    (source / name).symlink_to(closed / "secret")
    closed.chmod(0)
    arguments = ["prepare", str(source), "--output", str(place / "out"), "--dry-run"]
    place.chmod(0o777)
    with as_user():
        result = CliRunner().invoke(cli, arguments)
    closed.chmod(0o755)
    # What no command reads does not matter.
    assert (name == "hub") == (result.exit_code == 0), result.output
    assert "Permission denied" not in result.stderr
    assert name == "hub" or "more.safetensors is a link to" in result.stderr


def test_yaml_into_a_closed_directory_names_the_file_that_was_asked_for(source, place):
    prepared = prepare(source, output=place / "prepared", link_mode="copy").output_dir
    place.chmod(0o555)
    output = place / "x.yaml"
    with as_user():
        result = CliRunner().invoke(cli, ["yaml", str(prepared), "--output", str(output)])
    assert result.exit_code == 1
    assert (
        f"Error: {output} cannot be written: Permission denied ({place} has mode 0" in result.stderr
    )
    assert ".partial" not in result.stderr


def test_a_closed_directory_is_told_with_mode_and_owner_on_the_command_line(source):
    source.chmod(0)
    with as_user():
        result = CliRunner().invoke(cli, ["verify", str(source)])
    source.chmod(0o755)
    assert result.exit_code == 1
    reason = f"cannot be read: Permission denied (mode 0000, owned by {OWNER}). "
    assert result.stderr.startswith(f"Error: {source} {reason}")


def test_a_directory_below_a_closed_one_is_not_said_to_be_missing(source, place):
    place.chmod(0)
    with as_user():
        result = CliRunner().invoke(cli, ["prepare", str(source), "--dry-run"])
    place.chmod(0o755)
    assert result.exit_code == 1 and f"Permission denied ({place} has mode 0000" in result.stderr


def test_any_other_denial_is_told_with_mode_and_owner(tmp_path):
    path = tmp_path / "f"
    path.touch()
    path.chmod(0o640)

    @click.group(cls=ErrorGroup)
    def group():
        pass

    @group.command()
    def work():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    result = CliRunner().invoke(group, ["work"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {path}: Permission denied (mode 0640, owned by {OWNER}). Run chmod u+rwX {path}, "
        "then rerun.\n"
    )

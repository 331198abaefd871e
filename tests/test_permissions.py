"""What an error says of a file that the system keeps closed, and what it proposes."""

import errno
import os
import shlex

import pytest
from closed_files import OWNER, as_user, open_directory

from vacc_deploy import permissions
from vacc_deploy.permissions import (
    explain_closed,
    explain_denied,
    explain_unreadable,
    explain_unwritable,
)

DENIED = PermissionError(errno.EACCES, "Permission denied")
CHOOSE = "Choose another --output"


@pytest.fixture
def place():
    with open_directory() as path:
        yield path


def test_a_file_of_another_user_is_told_with_mode_owner_and_command(tmp_path, monkeypatch):
    path = tmp_path / "my model"
    path.touch(mode=0o600)
    path.chmod(0o600)
    monkeypatch.setattr(permissions.os, "geteuid", lambda: os.getuid() + 1)
    assert explain_unreadable(path, DENIED, otherwise="Download it again.") == (
        f"{path} cannot be read: Permission denied (mode 0600, owned by {OWNER}). Ask {OWNER} to "
        f"run {shlex.join(['chmod', 'a+r', str(path)])}, or for a copy elsewhere."
    )


def test_a_file_of_ones_own_is_told_with_the_command(tmp_path):
    path = tmp_path / "model"
    path.touch()
    path.chmod(0)
    assert explain_unreadable(path, DENIED) == (
        f"{path} cannot be read: Permission denied (mode 0000, owned by {OWNER}). Run chmod u+r "
        f"{path}, then rerun."
    )


def test_a_denial_of_which_no_more_is_known_than_the_path(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.touch(mode=0)
    reason = f"{path}: Permission denied (mode 0000, owned by {OWNER})"
    assert explain_denied(path) == f"{reason}. Run chmod u+rwX {path}, then rerun."
    monkeypatch.setattr(permissions.os, "geteuid", lambda: os.getuid() + 1)
    assert explain_denied(path) == f"{reason}. Ask {OWNER} for access."


def test_the_closed_directory_is_named_not_the_file_in_it(place):
    folder = place / "closed"
    (folder / "m").mkdir(parents=True)
    (folder / "m" / "file").touch()
    folder.chmod(0)
    reason = f"Permission denied ({folder} has mode 0000, owned by {OWNER})"
    with as_user():
        text = explain_unreadable(folder / "m" / "file", DENIED)
        assert text.startswith(f"{folder / 'm' / 'file'} cannot be read: {reason}. ")
        assert explain_closed(folder / "m").startswith(f"{folder / 'm'} cannot be read: {reason}. ")
        assert explain_closed(folder).startswith(
            f"{folder} cannot be read: Permission denied (mode"
        )
        assert f"{reason}. {CHOOSE}, or " in explain_unwritable(
            folder / "out" / "x", DENIED, choose=CHOOSE
        )
    folder.chmod(0o755)
    assert explain_closed(folder) is None
    assert explain_closed(folder / "missing") is None


def test_a_name_that_no_file_can_have_is_not_there(tmp_path):
    (tmp_path / "a").touch()
    assert permissions.is_there(tmp_path / "a") and permissions.is_there(tmp_path)
    for name in ("b", "a/b", "n" * 300, "zero\0byte"):
        assert not permissions.is_there(f"{tmp_path}/{name}")


def test_an_error_of_another_kind_keeps_its_reason_and_advice(tmp_path):
    err = OSError(errno.EIO, "Input/output error")
    text = explain_unreadable(tmp_path, err, otherwise="Check the disk.")
    assert text == f"{tmp_path} cannot be read: Input/output error. Check the disk."
    text = explain_unwritable(tmp_path, err, choose=CHOOSE)
    assert text == f"{tmp_path} cannot be written: Input/output error. {CHOOSE}."


def test_a_read_only_file_system_is_told(tmp_path, monkeypatch):
    real = os.statvfs

    def read_only(path):
        state = list(real(path))
        state[8] |= os.ST_RDONLY
        return os.statvfs_result(state)

    monkeypatch.setattr(permissions.os, "statvfs", read_only)
    text = explain_unwritable(tmp_path / "out", choose=CHOOSE)
    assert text == f"{tmp_path / 'out'} cannot be written: Read-only file system. {CHOOSE}."


def test_an_owner_without_a_name_is_told_by_number(tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(permissions.pwd, "getpwuid", unknown)
    assert f"owned by user {os.getuid()})" in explain_unreadable(tmp_path, DENIED)

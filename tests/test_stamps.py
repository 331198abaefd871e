"""Whether a file is still the one that was checked, on any file system."""

import os

import pytest
from changing_sources import CHANGES

from vacc_deploy import stamps
from vacc_deploy.stamps import compare_stamps, find_change, open_ordinary, take_stamp

EXPECTED = {
    "truncate": "it had 10 bytes, and has 5",
    "append": "it had 10 bytes, and has 14",
    "flip": "it was written again, with as many bytes",
    "replace": "another file stands in its place, with as many bytes",
    "remove": "it is gone",
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_text("0123456789")
    os.utime(path, ns=(1, 1))
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found_and_described(path, change):
    before = take_stamp(path)
    assert find_change(path, before) == ""
    CHANGES[change](path)
    assert find_change(path, before) == EXPECTED[change]


def test_files_that_come_and_links_that_are_turned(path, tmp_path):
    other = tmp_path / "other"
    assert find_change(other, None) == ""
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(1, 1))
    assert find_change(other, None) == "it is new"
    link = tmp_path / "link"
    link.symlink_to(path)
    before = take_stamp(link)
    link.unlink()
    link.symlink_to(other)
    assert find_change(link, before) == "another file stands in its place, with as many bytes"


def test_what_is_no_change(path, tmp_path):
    before = take_stamp(path)
    os.link(path, tmp_path / "link")
    path.chmod(0o600)
    path.read_bytes()
    os.utime(path, ns=(5, 1))  # the time of the last reading
    assert find_change(path, before) == "" and find_change(tmp_path / "link", before) == ""


@pytest.mark.parametrize(
    ("kind", "is_stable"),
    [
        ("ext4", True),
        ("nfs4", True),
        ("fuseblk", True),
        ("tmpfs", True),
        ("fuse", False),
        ("fuse.sshfs", False),
        ("overlay", False),
        ("9p", False),
        ("cifs", False),
    ],
)
def test_an_inode_counts_only_where_the_file_system_keeps_it(path, monkeypatch, kind, is_stable):
    place = str(path.parent).replace(" ", r"\040")
    mounts = path.with_name("mountinfo")
    mounts.write_text(
        "1 0 8:1 / / rw - btrfs /dev/sda1 rw\n"
        f"2 1 0:9 / {place} rw shared:3 - xfs /dev/sdb rw\n"
        f"3 2 0:7 / {place} rw,relatime shared:1 master:2 - {kind} source rw\n"
        f"4 1 0:8 / {place}-other rw - fuse.x source rw\n"
    )
    monkeypatch.setattr(stamps, "_MOUNTS", mounts)
    stamp = take_stamp(path)
    change = compare_stamps(path, stamp, stamp._replace(inode=stamp.inode + 1))
    assert bool(change) is is_stable
    # Size and time count everywhere.
    assert compare_stamps(path, stamp, stamp._replace(inode=0, changed_ns=2))
    assert compare_stamps(path, stamp, stamp._replace(inode=0, num_bytes=2))


def test_an_inode_does_not_count_where_the_mounts_are_not_known(path, monkeypatch):
    monkeypatch.setattr(stamps, "_MOUNTS", path.with_name("none"))
    stamp = take_stamp(path)
    assert compare_stamps(path, stamp, stamp._replace(inode=0)) == ""


def test_only_ordinary_files_are_opened(path, tmp_path):
    with open_ordinary(path) as file:
        assert file.read() == b"0123456789"
    os.mkfifo(tmp_path / "pipe")
    for odd, what in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device")):
        with pytest.raises(OSError, match=f"it is {what}, not a file"):
            open_ordinary(odd)
    with pytest.raises(IsADirectoryError):
        open_ordinary(tmp_path)


def test_a_pipe_that_comes_in_between_is_not_waited_for(path, monkeypatch):
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(stamps, "describe_odd", lambda path: "")
    with pytest.raises(OSError, match="it is not a file"):
        open_ordinary(path)


def test_mounts_are_read_with_every_sign_in_their_names(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 0:21 / / rw - ext4 /dev/a rw\n"
        b"23 22 0:21 /x /a\\040b\\011c\\012d\\134e rw shared:1 - fuse.x /dev/a rw\n"
        b"24 22 0:21 /x /\xff\\1 rw - ext4 /dev/a rw\nodd\n"
    )
    monkeypatch.setattr(stamps, "_MOUNTS", table)
    assert stamps.read_mounts() == [
        ("/", "ext4"),
        ("/a b\tc\nd\\e", "fuse.x"),
        ("/\udcff\\1", "ext4"),
    ]
    table.unlink()
    assert stamps.read_mounts() == []

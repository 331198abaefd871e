"""File systems that lack something, real ones that are small, links, and the clock."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from acts import error, fail, jump
from calls import make_case, moment
from fault import CHANGING, LOOKING, Act, Fault, Layer
from play import Case, Skipped
from runs import copy_tree, work_in
from stage import RESUME, Base


def _of_directories(number: int) -> Act:
    def act(layer: Layer, call: str, path: str) -> None:
        if os.path.isdir(path):
            fail(number)(layer, call, path)

    return act


_LACKS = {
    "lock": ("ENOSYS", "EOPNOTSUPP", "ENOLCK"),
    "link": ("EPERM", "EXDEV", "EMLINK", "EOPNOTSUPP", "ENOSYS"),
    "symlink": ("EPERM", "EOPNOTSUPP"),
    "rename": ("ENOSYS", "EXDEV", "EINVAL", "EEXIST"),
    "fsync": ("EINVAL", "ENOSYS", "EOPNOTSUPP"),
    "reserve": ("EOPNOTSUPP",),
}


def foreign_system(base: Base, rng: random.Random) -> Case:
    """Let the file system have no call of some kinds."""
    calls = [call for call in _LACKS if base.count(call)]
    chosen = rng.sample(calls, min(len(calls), rng.randint(1, 3)))
    faults = [error(rng.choice(_LACKS[call]), call, 1, lasts=True) for call in chosen]
    if rng.random() < 0.3 and base.count("fsync"):
        faults = [Fault("fsync", 1, _of_directories(22), "EINVAL of directories", lasts=True)]
    return make_case("foreign file system", base, *faults)


def _link_partial(work: Path) -> None:
    (work / "out.partial").symlink_to("out-mine")


def _link_empty_partial(work: Path) -> None:
    (work / "empty").mkdir()
    (work / "out.partial").symlink_to("empty")


def _link_marker(work: Path) -> None:
    partial = work / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text(_THESIS, "utf-8")
    (partial / ".vacc-deploy-partial").unlink(missing_ok=True)
    (partial / ".vacc-deploy-partial").symlink_to("../notes.txt")


def _link_output(work: Path) -> None:
    if (work / "out").exists():
        (work / "out").rename(work / "elsewhere")
    (work / "out").symlink_to("elsewhere" if (work / "elsewhere").exists() else "out-mine")


def _link_replaced(work: Path) -> None:
    (work / ".out.replaced-1").symlink_to("prep")


def _link_in_output(work: Path) -> None:
    (work / "out").mkdir(exist_ok=True)
    (work / "out" / "README.md").unlink(missing_ok=True)
    (work / "out" / "README.md").symlink_to("../notes.txt")


def _link_readme(work: Path) -> None:
    for name in ("model", "spare", "prep", "codes"):
        (work / name / "README.md").unlink(missing_ok=True)
        (work / name / "README.md").symlink_to("../../outside/secret.txt")


def _link_environment(work: Path) -> None:
    for name in ("model", "spare", "prep", "codes"):
        (work / name / "NOTICE").symlink_to("/proc/self/environ")


_THESIS = "in a directory of an unlucky name"
_LINKS = {
    "out.partial is a link": _link_partial,
    "out.partial is a link to an empty directory": _link_empty_partial,
    "a marker in a partial directory is a link": _link_marker,
    "the output is a link": _link_output,
    "an older output aside is a link": _link_replaced,
    "a file in the output is a link": _link_in_output,
    "README.md leads outside": _link_readme,
    "NOTICE leads to the environment": _link_environment,
}


def links(base: Base, rng: random.Random) -> Case:
    """Let something be a link that nobody expects to be one."""
    # Where a run goes on, the partial directory is there, and really its own.
    words = rng.choice([w for w in sorted(_LINKS) if base.start != RESUME or "partial" not in w])
    planted = (("thesis.txt", _THESIS),) if "marker" in words else ()

    def arrange(sandbox: Path) -> None:
        _LINKS[words](work_in(sandbox))

    return make_case("links", base, words=words, arrange=arrange, planted=planted, is_stuck=True)


def clock(base: Base, rng: random.Random) -> Case:
    """Let the clock jump, or the times of all files lie elsewhere; nothing may change."""
    seconds = rng.choice((-1, 1)) * 10 ** rng.uniform(1, 9)
    if rng.random() < 0.5:
        call, number = moment(base, rng, (*CHANGING, *LOOKING))
        fault = Fault(call, number, jump(seconds), f"clock {seconds:+,.0f} s")
        return make_case("clock", base, fault, codes=())

    def arrange(sandbox: Path) -> None:
        for path in work_in(sandbox).rglob("*"):
            when = max(path.lstat().st_mtime + seconds, 0)
            os.utime(path, (when, when), follow_symlinks=False)

    return make_case("clock", base, words=f"files {seconds:+,.0f} s", arrange=arrange, codes=())


def _mount(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"{' '.join(words[:3])}: {done.stderr.strip()}")


@contextmanager
def _on_tmpfs(sandbox: Path, free_bytes: int, *, is_read_only: bool) -> Iterator[None]:
    """Let the working directory lie on a file system of its own meanwhile."""
    work, kept = work_in(sandbox), sandbox / "kept"
    if shutil.which("mount") is None or os.geteuid() != 0:
        raise Skipped("only root may mount a file system")
    work.rename(kept)
    work.mkdir()
    size = sum(-(-p.lstat().st_size // 4096) * 4096 for p in kept.rglob("*")) + free_bytes
    try:
        _mount("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(work))
    except Skipped:
        work.rmdir()
        kept.rename(work)
        raise
    try:
        shutil.copytree(kept, work, symlinks=True, dirs_exist_ok=True)
        if is_read_only:
            _mount("mount", "-o", "remount,ro", str(work))
        shutil.rmtree(kept)
        yield
        copy_tree(work, sandbox / "kept")
    finally:
        subprocess.run(["umount", "-l", str(work)], capture_output=True, check=False)
    work.rmdir()
    kept.rename(work)


def small_mount(base: Base, rng: random.Random) -> Case:
    """Run on a real file system that is too small, or that can only be read."""
    is_read_only, free = rng.random() < 0.2, int(4096 * 256 ** rng.random())
    words = "a tmpfs to read only" if is_read_only else f"a tmpfs with {free:,} bytes free"
    arrange = partial(_on_tmpfs, free_bytes=free, is_read_only=is_read_only)
    return make_case("real file system", base, words=words, arrange=arrange)

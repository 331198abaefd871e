"""Put the weight files of a checkpoint into an output: linked, copied, or in a changed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vacc_deploy.checkpoint.normalize import INDEX_RULES
from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint
from vacc_deploy.formats.dtypes import DTYPES, used_dtype
from vacc_deploy.outputs.file_system import Say, check_space
from vacc_deploy.outputs.files import place_shard
from vacc_deploy.outputs.manifests import LinkedFile
from vacc_deploy.outputs.side_files import GENERATED, SideFile
from vacc_deploy.outputs.writer import WrittenFile, shard_bytes, write_index_map, write_shard
from vacc_deploy.permissions import real_path
from vacc_deploy.progress import Progress

# How a weight file comes that the output holds in another form than the source.
CHANGED, COPY = "changed", "copy"


class Placement:
    """Where the weights of a checkpoint go, and how.

    Attributes:
        planned: name, bytes and most likely way of each weight file.
    """

    def __init__(self, checkpoint: Checkpoint, output_dir: Path, link_mode: str) -> None:
        """Plan, and see that what will be written fits.

        Args:
            checkpoint: the source.
            output_dir: the directory to write.
            link_mode: one of ``files.LINK_MODES``.

        Raises:
            OutputError: the file system has too little space.
        """
        self._checkpoint, self._output, self._link_mode = checkpoint, output_dir, link_mode
        self._changed = checkpoint.changed_shards()
        device = real_path(output_dir).parent.stat().st_dev
        self.planned: list[tuple[str, int, str]] = []
        for name, shard in checkpoint.shards.items():
            is_near = shard.path.stat().st_dev == device
            how = ("hardlink" if is_near else COPY) if link_mode == "auto" else link_mode
            size = shard.file_bytes
            if name in self._changed:
                how, size = CHANGED, shard_bytes({i.name: i for i in self._changed[name]})
            self.planned.append((name, size, how))
        check_space(output_dir, self._written_bytes(COPY, CHANGED))

    def _written_bytes(self, *ways: str, start: int = 0) -> int:
        return sum(size for _, size, how in self.planned[start:] if how in ways)

    def place(
        self, folder: Path, progress: Progress, say: Say
    ) -> list[tuple[WrittenFile | LinkedFile, str]]:
        """Write every weight file into ``folder``; return each and how it came there.

        Args:
            folder: the unfinished output.
            progress: learns of every byte.
            say: receives a note where links have to give way to copies.

        Raises:
            OutputError: a link that was asked for is refused, or copies do not fit.
        """
        files = list[tuple[WrittenFile | LinkedFile, str]]()
        refuse = self._refusal(say)
        progress.start("Placing weights", sum(size for _, size, _ in self.planned), "bytes")
        for number, (name, size, _) in enumerate(self.planned):
            shard = self._checkpoint.shards[name]
            if name in self._changed:
                tensors = {info.name: info for info in self._changed[name]}
                files.append((write_shard(folder / name, tensors), CHANGED))
            else:
                before_copy = partial(refuse, number)
                files.append(place_shard(shard, folder, self._link_mode, before_copy=before_copy))
            progress.advance(size, name)
        progress.finish()
        return files

    def _refusal(self, say: Say) -> Callable[[int, str], None]:
        """Return what is called, with the file's number and the reason, where a link is refused.

        The plan did not count on copies, so they may not fit.
        """
        is_told = False

        def refuse(number: int, reason: str) -> None:
            nonlocal is_told
            if is_told:
                return
            is_told = True
            check_space(self._output, self._written_bytes("hardlink", COPY, CHANGED, start=number))
            say(
                f"{self._output} can hold no hard links to the weights ({reason}), so they were "
                "copied."
            )

        return refuse

    def plan_index(self) -> list[SideFile]:
        """Return the index, if there is to be one: the source's where it holds here too."""
        checkpoint = self._checkpoint
        rules = {applied.rule for applied in checkpoint.applied}
        if checkpoint.has_index and not self._changed and not rules & INDEX_RULES:
            path = checkpoint.directory / INDEX_NAME
            return [SideFile.copied(path, stamp=checkpoint.stamps.get(INDEX_NAME))]
        if set(checkpoint.shards) == {SINGLE_FILE}:
            return []
        # Odd names without an index: loaders find such shards only through one.
        return self.write_index()

    def write_index(self) -> list[SideFile]:
        """Return the index that follows from the headers."""
        checkpoint = self._checkpoint
        stored = [
            (info.name, file, math.prod(info.shape) * DTYPES[used_dtype(info.dtype)].num_bytes)
            for file, shard in checkpoint.shards.items()
            for info in self._changed.get(file, shard.tensors)
        ]
        weight_map, total = {n: f for n, f, _ in stored}, sum(size for *_, size in stored)
        write = partial(write_index_map, weight_map=weight_map, total=total)
        return [SideFile(INDEX_NAME, None, GENERATED, write)]

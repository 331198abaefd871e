"""One stranger's file in a worker: its time, and that the worker's process may change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from vacc_deploy.text.worker import Worker, WorkerError


class Session:
    """One stranger's file in a worker, with the time that is left for it.

    Attributes:
        is_loaded: whether the child has taken the file once.
        facts: what the child told of the file.
    """

    def __init__(self, worker: Worker, data: bytes, *, seconds: float, num_bytes: int) -> None:
        """Prepare; nothing is started.

        Args:
            worker: of the file's kind.
            data: the file.
            seconds: CPU time for all requests together; each may add its own.
            num_bytes: memory to load the file.
        """
        self._worker, self._data = worker, data
        self._seconds = self._allowed = float(seconds)
        self._num_bytes, self._load_seconds = num_bytes, 0.0
        self._key = hashlib.sha256(data).hexdigest()
        self.is_loaded, self.facts = False, dict[str, Any]()

    def load(self) -> None:
        """Give the file to the child.

        Raises:
            WorkerError: see ``Worker.request``.
        """
        head = {"op": "load", "key": self._key}
        before = self._seconds
        self.facts, _ = self._ask(head, self._data, num_bytes=self._num_bytes, limit=0)
        self._load_seconds = before - self._seconds
        self.is_loaded = True

    def request(
        self, head: Mapping[str, Any], data: bytes, *, seconds: float, num_bytes: int, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        """Return the reply of ``Worker.request``; ``seconds`` are added to those that are left."""
        if not self.is_loaded:
            self.load()
        self._seconds += seconds
        self._allowed += seconds
        head = {**head, "key": self._key}
        reply, answer = self._ask(head, data, num_bytes=num_bytes, limit=limit)
        if reply.get("unknown"):
            # The file was given up for others: that is no fault of its own.
            self._seconds += self._load_seconds
            self.load()
            reply, answer = self._ask(head, data, num_bytes=num_bytes, limit=limit)
        if reply.get("unknown"):
            raise WorkerError("its process does not hold it")
        return reply, answer

    def _ask(
        self, head: Mapping[str, Any], data: bytes, *, num_bytes: int, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        # The message is to give what all requests together may take.
        head, seconds = {**head, "allowed": self._allowed}, max(self._seconds, 0.0)
        reply, answer = self._worker.request(
            head, data, seconds=seconds, num_bytes=num_bytes, limit=limit
        )
        self._seconds -= reply["used"]
        return reply, answer

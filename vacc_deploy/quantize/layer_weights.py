"""Read the next decoder layer's weights while this one is computed; two layers in memory."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import QuantizationError
from vacc_deploy.quantize.compute import Compute


class LayerWeights:
    """The stored tensors of one layer on the device.

    ``read`` gives the dtype of the computation, ``read_exact`` float32 without loss.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        index: int,
        tensors: dict[str, torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint, self.index = checkpoint, index
        self._tensors, self._dtype = tensors, dtype

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor in the compute dtype."""
        return self._tensors[name].to(self._dtype)

    def release(self, linear: str) -> None:
        """Let go of a linear's weight, by the linear's full name."""
        self._tensors.pop(f"{linear}.weight", None)

    def read_exact(self, name: str) -> torch.Tensor:
        """Return a tensor as float32; treat it as read-only."""
        return self._tensors[name].float()


def locate_file(err: QuantizationError, checkpoint: Checkpoint) -> None:
    """Add the file to an error about a weight of ``checkpoint``, and what to do about it."""
    if err.tensor in checkpoint.tensors:
        file = checkpoint.info(err.tensor).path.name
        advice = (
            f"Download the file {file} again. If the new one holds the same, the training or the "
            "merge that wrote it went wrong: make the model again."
        )
        err.locate(file=str(checkpoint.directory), advice=advice)


def read_layers(checkpoint: Checkpoint, compute: Compute) -> Generator[LayerWeights, None, None]:
    """Yield the weights of every layer, reading one ahead in a thread.

    Raises:
        CheckpointError: a file was changed since its header was read.
    """
    stream = torch.cuda.Stream(compute.device) if compute.device.type == "cuda" else None
    count = checkpoint.config.num_hidden_layers
    pool = ThreadPoolExecutor(1, thread_name_prefix="layer-reader")
    try:
        ahead: Future[dict[str, torch.Tensor]] | None = None
        for index in range(count):
            tensors = (ahead or pool.submit(_load, checkpoint, compute, index, stream)).result()
            ahead = None  # the future holds on to its tensors
            if index + 1 < count:
                ahead = pool.submit(_load, checkpoint, compute, index + 1, stream)
            if stream is not None:
                for tensor in tensors.values():
                    # Its memory is the side stream's; it may be given out again only after the
                    # main stream is done with it.
                    tensor.record_stream(torch.cuda.current_stream(compute.device))
            yield LayerWeights(checkpoint, index, tensors, compute.dtype)
            del tensors
    finally:
        pool.shutdown(cancel_futures=True)


def _load(
    checkpoint: Checkpoint, compute: Compute, index: int, stream: torch.cuda.Stream | None
) -> dict[str, torch.Tensor]:
    names = checkpoint.config.layer_tensors(index)
    if stream is None:
        return {name: checkpoint.read(name) for name in names}
    # On a stream of its own a copy does not queue behind the kernels of the layer before.
    with torch.cuda.stream(stream):
        tensors = {name: checkpoint.read(name).to(compute.device) for name in names}
        # In this thread: whoever takes the result may use it at once.
        stream.synchronize()
    return tensors

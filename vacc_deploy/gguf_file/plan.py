"""What a GGUF file of a model will hold: every tensor, its form and its bytes; checked before work.

The floats of embedding and head become float16 or Q8_0, all other floats float32, as llama.cpp's
converter stores them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.checkpoint.gguf_header import ALIGNMENT, ENDING, TENSOR_TYPES
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import UnsupportedModelError
from vacc_deploy.formats.int8 import INT8_MAX
from vacc_deploy.formats.q8_0 import F16, F32, Q8_0
from vacc_deploy.gguf_file.key_values import (
    check_architecture,
    model_values,
    token_values,
)
from vacc_deploy.gguf_file.modelfile import write_modelfile
from vacc_deploy.gguf_file.tokens import GgufTokens, read_tokens
from vacc_deploy.models.config import EMBEDDING, LM_HEAD
from vacc_deploy.models.gguf_keys import KeyValues, rope_factors
from vacc_deploy.models.gguf_names import ROPE_FACTORS, gguf_names

_KINDS = {kind.name: kind for kind in TENSOR_TYPES.values()}
# A name that a shell, a Modelfile and every file system take as it is.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
# Rows of an embedding that are read at a time.
_ROWS = 4096
_LARGEST_F16 = 65504.0


class PlannedTensor(NamedTuple):
    """One tensor of the file.

    Attributes:
        name: in the file.
        source: its name in the shards, the linear's own for a linear; empty for one that is made.
        kind: ``F16``, ``F32`` or ``Q8_0``.
        shape: as torch has it.
    """

    name: str
    source: str
    kind: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        kind = _KINDS[self.kind]
        return math.prod(self.shape) // kind.block * kind.num_bytes


@dataclass(frozen=True)
class GgufPlan:
    """The GGUF file of a checkpoint, planned.

    Attributes:
        checkpoint: the float source.
        name: of the model.
        embeddings: kind of embedding and head, ``F16`` or ``Q8_0``.
        pre: llama.cpp's name of the pre-tokenizer where the user gave it.
    """

    checkpoint: Checkpoint
    name: str
    embeddings: str = F16
    pre: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file."""
        return f"{self.name if _PLAIN_NAME.fullmatch(self.name) else 'model'}-{Q8_0}{ENDING}"

    @cached_property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """All tensors, in the order of the file."""
        return tuple(self._list_tensors())

    def _list_tensors(self) -> Iterator[PlannedTensor]:
        config = self.checkpoint.config
        if factors := rope_factors(config):
            yield PlannedTensor(ROPE_FACTORS, "", F32, (len(factors),))
        linears, shapes = config.linear_names(), config.expected_tensors()
        for source, name in gguf_names(config).items():
            linear = source.removesuffix(".weight")
            if linear in linears:
                yield PlannedTensor(name, linear, Q8_0, shapes[source])
            else:
                kind = self.embeddings if source in (EMBEDDING, LM_HEAD) else F32
                yield PlannedTensor(name, source, kind, shapes[source])

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, with those between them."""
        return sum(tensor.num_bytes + -tensor.num_bytes % ALIGNMENT for tensor in self.tensors)

    @cached_property
    def tokens(self) -> GgufTokens:
        """The tokenizer; see ``read_tokens`` for the errors."""
        return read_tokens(self.checkpoint.directory, self.checkpoint.config, self.pre)

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        """The values of ``generation_config.json``."""
        source, config = self.checkpoint.directory, self.checkpoint.config
        return read_generation_config(source, config.vocab_size)[0] or {}

    def key_values(self) -> KeyValues:
        """Return all key-values, in the order of the file."""
        model = model_values(self.checkpoint.config, self.name, self.generation)
        return model | token_values(self.tokens)

    def modelfile(self) -> str:
        """Return the text of the Modelfile."""
        return write_modelfile(self.file_name, self.tokens, self._end_ids(), self.generation)

    def _end_ids(self) -> list[int]:
        """Return the ids that end an answer."""
        stated = [
            self.generation.get("eos_token_id"),
            self.checkpoint.config.raw.get("eos_token_id"),
        ]
        ids = [i for value in stated for i in (value if isinstance(value, list) else [value])]
        ids.append(self.tokens.special.get("eos"))
        count = self.checkpoint.config.vocab_size
        return [i for i in ids if type(i) is int and 0 <= i < count]

    def check(self) -> tuple[str, ...]:
        """Refuse what cannot be written, before any work; return what a user should know.

        Raises:
            UnsupportedModelError: llama.cpp would not compute this model, does not cut a text as
                its tokenizer does, or a value of the embedding does not fit float16.
            CheckpointError: the tokenizer is missing or damaged.
        """
        check_architecture(self.checkpoint.config)
        self.key_values()
        self.modelfile()
        self._check_range()
        problem = self.tokens.template_problem
        left_out = "It is left out of the GGUF file and of the Modelfile."
        return (f"{problem} {left_out}",) if problem else ()

    def _check_range(self) -> None:
        """Refuse an embedding or a head that its kind cannot hold.

        In Q8_0 the scale of a block, its largest value by 127, is a float16.
        """
        checkpoint = self.checkpoint
        for name in (EMBEDDING, LM_HEAD):
            if name not in checkpoint.tensors or checkpoint.info(name).dtype == F16:
                continue
            for start in range(0, checkpoint.config.vocab_size, _ROWS):
                values = checkpoint.read_slice(name, start, start + _ROWS)
                largest = values.abs().amax(1).float()  # [rows]
                # What rounds to the largest float16 or less fits.
                over = (largest / (1 if self.embeddings == F16 else INT8_MAX)).half().isinf()
                if over.any():
                    row = int(over.nonzero()[0])
                    raise self._too_large(name, start + row, float(largest[row]))

    def _too_large(self, name: str, row: int, value: float) -> UnsupportedModelError:
        limit = _LARGEST_F16 if self.embeddings == F16 else _LARGEST_F16 * INT8_MAX
        is_helped = self.embeddings == F16 and value <= _LARGEST_F16 * INT8_MAX
        other = "Give --gguf-embeddings q8_0, or use" if is_helped else "Use"
        return UnsupportedModelError(
            f"{name} in {self.checkpoint.info(name).path}: row {row} holds {value:g}, the largest "
            f"that {self.embeddings} can store is {limit:g}. {other} another --format."
        )

"""Settle what a configuration file says that no loader, or not every loader, takes as it stands.

Trainers and converters leave flags of their own runs in ``config.json`` and
``generation_config.json``, and write ids in forms that some programs refuse. Each rule returns a
note where it changes a value; a value that is fine stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vacc_deploy.formats.dtypes import FLOAT_DTYPE_BYTES
from vacc_deploy.formats.layouts import recognize
from vacc_deploy.models.config import CONFIG_NAME, GENERATION_CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import parse_config
from vacc_deploy.models.vacc_config import AUTO_MAP

# What turns a token's text into its id; None where there is no such token.
TokenId = Callable[[str], int | None]
# Flags of one run, with the value that changes nothing. They are no part of the model: in a traced
# graph they would change what a forward pass returns.
_RUN_FLAGS: dict[str, Any] = {
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "output_scores": False,
    "return_dict": True,
    "return_dict_in_generate": False,
    "use_return_dict": True,
    "use_cache": True,
    "torchscript": False,
    "use_bfloat16": False,
    "gradient_checkpointing": False,
    "chunk_size_feed_forward": 0,
    "pretraining_tp": 1,
    "attn_implementation": "eager",
    "_attn_implementation": "eager",
    "_attn_implementation_internal": "eager",
    "_attn_implementation_autoset": False,
    "_flash_attn_2_enabled": False,
    "use_flash_attention_2": False,
}
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

# docs/prepare.md says what each rule does.
CONFIG_RULES = ("run-flags", "foreign-code", "architecture", "dtype-name", "token-ids", "top-k")


@dataclass(frozen=True)
class Applied:
    """A rule that has changed something, and the sentence that tells what."""

    rule: str
    note: str

    def to_text(self) -> str:
        """Return the sentence with the name of the rule."""
        return f"{self.note.removesuffix('.')} (rule {self.rule})."


class Settler:
    """Applies rules to the values of one file.

    Attributes:
        values: a copy of the file's, with what the rules have changed.
        applied: what they have changed.
    """

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        """Begin with the values of the file ``name``."""
        self.values, self.applied, self._name = dict(values), list[Applied](), name

    def note(self, rule: str, text: str) -> None:
        """Record that a rule has changed the file."""
        self.applied.append(Applied(rule, f"{self._name}: {text}"))

    def drop_run_flags(self) -> None:
        """Take out the flags that belong to a training or evaluation run."""
        flags = [
            key
            for key, harmless in _RUN_FLAGS.items()
            if self.values.get(key) is not None and self.values[key] != harmless
        ]
        if not flags:
            return
        listed = ", ".join(f"{key} {self.values.pop(key)!r:.40}" for key in flags)
        self.note("run-flags", f"left out {listed}: set for a run, no part of the model.")

    def drop_foreign_code(self) -> None:
        """Take out an ``auto_map``: the code that it names does not travel with the weights."""
        stated = self.values.get("auto_map")
        if stated is None or stated == AUTO_MAP:
            return
        del self.values["auto_map"]
        self.note(
            "foreign-code", "left out auto_map; transformers' own class of this architecture runs."
        )

    def name_architecture(self) -> None:
        """Name the class with a head, where a part of the model or a wrapper of it was saved."""
        expected = _ARCHITECTURES.get(str(self.values.get("model_type")))
        stated = self.values.get("architectures")
        if expected and stated and stated != [expected]:
            self.values["architectures"] = [expected]
            self.note("architecture", f"architectures {stated!r:.80} is read as ['{expected}'].")

    def name_dtype(self, stored: str | None) -> None:
        """Give the dtype a name that loaders know; ``stored`` is that of most of the weights."""
        keys = [key for key in ("dtype", "torch_dtype") if self.values.get(key) is not None]
        for key in keys:
            stated = self.values[key]
            name = stated.removeprefix("torch.") if isinstance(stated, str) else stated
            if not isinstance(name, str) or name not in FLOAT_DTYPE_BYTES:
                # float64, auto and the like: what most of the weights are stored in.
                name = stored
            if name is not None and name != stated:
                self.values[key] = name
                self.note("dtype-name", f"{key} {stated!r:.40} is read as {name!r}.")

    def settle_ids(self, vocab_size: Any, token_id: TokenId) -> None:
        """Make whole numbers within the vocabulary of the ids, or leave them out."""
        limit = vocab_size if type(vocab_size) is int else 1 << 31
        for key in _ID_KEYS:
            stated = self.values.get(key)
            if stated is None:
                continue
            entries = stated if isinstance(stated, list) else [stated]
            ids = [_settle_id(entry, limit, token_id) for entry in entries[:1000]]
            kept = list(dict.fromkeys(value for value in ids if value is not None))
            settled = kept if isinstance(stated, list) else next(iter(kept), None)
            # Not by equality alone: 7.0 equals 7, and true equals 1.
            if kept and settled == stated and all(type(entry) is int for entry in entries):
                continue
            if kept:
                self.values[key] = settled
                self.note("token-ids", f"{key} {stated!r:.80} is read as {settled!r:.80}.")
            else:
                del self.values[key]
                self.note(
                    "token-ids",
                    f"left out {key} {stated!r:.80}: it is no id of this model (vocab_size "
                    f"{vocab_size}).",
                )

    def settle_top_k(self) -> None:
        """Write 0, which transformers reads as no limit, for a negative ``top_k``."""
        stated: Any = self.values.get("top_k")
        if type(stated) in (int, float) and stated < 0:
            self.values["top_k"] = 0
            self.note("top-k", f"top_k {stated} is read as 0, no limit.")
        elif type(stated) is float and stated.is_integer():
            self.values["top_k"] = int(stated)
            self.note("top-k", f"top_k {stated} is read as {int(stated)}.")


def settle_config(
    values: Mapping[str, Any], stored_dtype: str | None, token_id: TokenId
) -> Settler:
    """Return the values of ``config.json`` as every loader takes them.

    Args:
        values: the file as parsed.
        stored_dtype: torch's name of the dtype of most of the weights; None where not known.
        token_id: the checkpoint's tokenizer, asked only where an id is a text.
    """
    settler = Settler(values, CONFIG_NAME)
    settler.drop_run_flags()
    settler.drop_foreign_code()
    settler.name_architecture()
    settler.name_dtype(stored_dtype)
    settler.settle_ids(values.get("vocab_size"), token_id)
    return settler


def preview_config(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Return what ``config.json`` says, as far as the weights do not decide it.

    They decide whether a ``quantization_config`` that is not ours is left over.

    Args:
        values: the file as parsed.
        where: its name, for messages.

    Raises: see ``parse_config``.
    """
    settled = settle_config(values, "float32", lambda token: None).values
    stated = settled.get("quantization_config")
    if stated and recognize(stated) is None:
        del settled["quantization_config"]
    return parse_config(settled, where=where)


def settle_generation(values: Mapping[str, Any], vocab_size: int, token_id: TokenId) -> Settler:
    """Return the values of ``generation_config.json`` likewise."""
    settler = Settler(values, GENERATION_CONFIG_NAME)
    settler.settle_ids(vocab_size, token_id)
    settler.settle_top_k()
    return settler


def _settle_id(entry: Any, limit: int, token_id: TokenId) -> int | None:
    """Return one id; None where it stands for none."""
    if isinstance(entry, str):
        # Bounded: a number of a million digits would take long.
        is_number = entry.isascii() and entry.isdecimal() and len(entry) < 12
        entry = int(entry) if is_number else token_id(entry)
    if isinstance(entry, float) and entry.is_integer():
        entry = int(entry)
    return entry if type(entry) is int and 0 <= entry < limit else None

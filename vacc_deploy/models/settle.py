"""Settle what a configuration file says that no loader, or not every loader, takes as it stands.

Trainers and converters leave flags of their own runs in ``config.json`` and
``generation_config.json``, and write ids in forms that some programs refuse. Each rule returns a
note where it changes a value; a value that is fine stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vacc_deploy.bounds import END_TOKENS
from vacc_deploy.errors import CheckpointError, name_some
from vacc_deploy.formats.dtypes import FLOAT_DTYPE_BYTES
from vacc_deploy.formats.layouts import recognize
from vacc_deploy.json_files import is_json
from vacc_deploy.models.config import (
    ARCHITECTURES,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SUPPORTED_MODEL_TYPES,
    ModelConfig,
)
from vacc_deploy.models.library_config import ARCHITECTURE_KEYS, ID_KEYS
from vacc_deploy.models.parse import parse_config
from vacc_deploy.models.rope import ATTENTION_FACTOR, YARN_LENGTH, settle_yarn
from vacc_deploy.models.stated_values import TokenId, read_flag, read_number, settle_id
from vacc_deploy.models.vacc_config import AUTO_MAP

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
# Numbers of a training; what a trained model computes does not depend on them.
_TRAINING_NUMBERS = ("attention_dropout", "initializer_range")
_SAMPLING_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# Where transformers looks for the configuration of a part of the model.
_PARTS = ("text_config", "decoder", "generator", "text_encoder")
# Of these a null is no value for any loader, and an absent key is the default of the class.
_NEVER_NULL = (
    *("attention_bias", "head_dim", "hidden_act", "max_position_embeddings", "max_window_layers"),
    *("mlp_bias", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "use_sliding_window"),
    *(*_TRAINING_NUMBERS, "return_dict", "use_cache", "use_return_dict"),
)
# The rules of outputs.side_files.
BYTE_ORDER_MARK, TOKEN_FILES = "byte-order-mark", "token-files"

# docs/prepare.md says what each rule does.
CONFIG_RULES = (
    "run-flags",
    "null-values",
    "not-a-number",
    "parts",
    "foreign-code",
    "architecture",
    "dtype-name",
    ATTENTION_FACTOR,
    YARN_LENGTH,
    "token-ids",
    "sampling-values",
    "greedy",
    "top-k",
    BYTE_ORDER_MARK,
    TOKEN_FILES,
)


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
        flags += [
            key
            for key in _TRAINING_NUMBERS
            if type(self.values.get(key)) not in (int, float, type(None))
        ]
        if not flags:
            return
        listed = ", ".join(f"{key} {self.values.pop(key)!r:.40}" for key in flags)
        self.note("run-flags", f"left out {listed}: set for a run, no part of the model.")

    def drop_nulls(self) -> None:
        """Take out each null that stands for a value which every loader wants."""
        keys = [key for key in _NEVER_NULL if self.values.get(key, key) is None]
        for key in keys:
            del self.values[key]
        if keys:
            self.note("null-values", f"{', '.join(keys)}: null counts as not stated.")

    def drop_not_json(self, but: Collection[str] = ()) -> None:
        """Take out what holds NaN or infinity, except the keys ``but``.

        Python reads and writes both, but they are no JSON, and other programs refuse the file.
        """
        keys = [k for k, value in self.values.items() if k not in but and not is_json(value)]
        for key in keys:
            del self.values[key]
        if keys:
            listed = name_some([f"{key:.80}" for key in keys])
            self.note("not-a-number", f"left out {listed}: NaN and infinity are no JSON.")

    def drop_parts(self) -> None:
        """Take out the configurations of the parts of a larger model."""
        is_known = self.values.get("model_type") in SUPPORTED_MODEL_TYPES
        keys = [key for key in _PARTS if is_known and self.values.get(key) is not None]
        for key in keys:
            del self.values[key]
        if keys:
            what = "it describes a part" if len(keys) == 1 else "they describe parts"
            self.note("parts", f"left out {', '.join(keys)}: {what} of another model.")

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
        expected = ARCHITECTURES.get(str(self.values.get("model_type")))
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

    def settle_yarn(self) -> None:
        """State yarn so that every runtime computes the same."""
        changes, notes = settle_yarn(self.values)
        self.values |= changes
        for rule, note in notes.items():
            self.note(rule, note)

    def settle_ids(self, vocab_size: Any, token_id: TokenId) -> None:
        """Make whole numbers within the vocabulary of the ids, or leave them out.

        Raises:
            CheckpointError: there are more of them than any model has.
        """
        limit = vocab_size if type(vocab_size) is int else 1 << 31
        for key in ID_KEYS:
            stated = self.values.get(key)
            if stated is None:
                continue
            entries = stated if isinstance(stated, list) else [stated]
            if len(entries) > END_TOKENS:
                raise CheckpointError(
                    f"{self._name}: {key} lists {len(entries):,} ids, more than the {END_TOKENS:,} "
                    "that are read. Restore the file from the model's original repository."
                )
            ids = [settle_id(entry, limit, token_id) for entry in entries]
            kept = list(dict.fromkeys(value for value in ids if value is not None))
            # A model may have several ends, but one begin and one padding.
            is_list = isinstance(stated, list) and key == "eos_token_id"
            settled = kept if is_list else next(iter(kept), None)
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

    def read_sampling_texts(self) -> None:
        """Read numbers and flags that are texts; what is neither stays as it is."""
        for key in ("do_sample", *_SAMPLING_NUMBERS):
            stated = self.values.get(key)
            value = read_flag(stated) if key == "do_sample" else read_number(stated)
            if value is not None:
                self.values[key] = value
                self.note("sampling-values", f"{key} {stated!r:.40} is read as {value!r}.")

    def settle_greedy(self) -> None:
        """Turn sampling off where the temperature leaves nothing to draw."""
        stated: Any = self.values.get("temperature")
        if self.values.get("do_sample") is True and type(stated) in (int, float) and stated == 0:
            del self.values["temperature"]
            self.values["do_sample"] = False
            self.note("greedy", f"do_sample with temperature {stated} is read as do_sample false.")

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
    settler.drop_nulls()
    settler.drop_run_flags()
    # What the architecture needs is refused instead, by models.parse.
    settler.drop_not_json(but=ARCHITECTURE_KEYS)
    settler.drop_parts()
    settler.drop_foreign_code()
    settler.name_architecture()
    settler.name_dtype(stored_dtype)
    settler.settle_yarn()
    settler.settle_ids(values.get("vocab_size"), token_id)
    return settler


def preview_config(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Return what ``config.json`` says, as far as the weights do not decide it.

    They decide whether a ``quantization_config`` or ``quantization_bit`` that is not ours is left
    over.

    Args:
        values: the file as parsed.
        where: its name, for messages.

    Raises: see ``parse_config``.
    """
    settled = settle_config(values, "float32", lambda token: None).values
    stated = settled.get("quantization_config")
    if stated and recognize(stated) is None:
        del settled["quantization_config"]
    if settled.get("quantization_bit") != 8:
        settled.pop("quantization_bit", None)
    return parse_config(settled, where=where)


def settle_generation(values: Mapping[str, Any], vocab_size: int, token_id: TokenId) -> Settler:
    """Return the values of ``generation_config.json`` likewise."""
    settler = Settler(values, GENERATION_CONFIG_NAME)
    # What is drawn with is refused instead, by reference.sampling.
    settler.drop_not_json(but=_SAMPLING_NUMBERS)
    settler.settle_ids(vocab_size, token_id)
    settler.read_sampling_texts()
    settler.settle_greedy()
    settler.settle_top_k()
    return settler

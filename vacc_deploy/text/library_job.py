"""Reads a directory's tokenizer with transformers, in the process of ``child``.

What is asked for is what a server gets that loads the directory by its name. Nothing is fetched,
and no code of the directory is run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# A tokenizer needs none of them, and torch alone takes seconds and gigabytes of addresses.
_HIDDEN = frozenset(
    ("torch", "torchvision", "torchaudio", "tensorflow", "jax", "flax", "keras", "scipy")
    + ("sklearn", "pandas", "accelerate", "onnxruntime", "librosa", "PIL", "cv2")
)


class _Finder(PathFinder):
    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find a module, but none that is hidden."""
        if fullname.partition(".")[0] in _HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path[:] = [_Finder if finder is PathFinder else finder for finder in sys.meta_path]

import transformers  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

# Where the releases of transformers ask for the date that a template prints.
_DATED = ("transformers.utils.chat_template_utils", "transformers.tokenization_utils_base")


class _FixedDate(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _FixedDate:
        """Return the date of ``template_job``: the day of the comparison is no difference."""
        return cls(2024, 7, 26, tzinfo=tz)


def handle(request: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Load the tokenizer of ``request["directory"]`` and encode the probes.

    ``body`` is JSON: ``texts``, a list, and ``chat``, a list of turns. The reply is the version;
    its data are JSON: ``class``; ``is_byte_level``, None where it is not known; ``ids`` and
    ``opened``, without and with the special tokens that it adds, a list of ids for each text;
    ``chat`` and ``chat_ids``, the rendered conversation, or ``chat_error``. Where the tokenizer
    does not load, ``load_error`` alone.
    """
    wanted, told = json.loads(body), {"version": str(transformers.__version__)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            request["directory"], local_files_only=True, trust_remote_code=False
        )
    except (MemoryError, RecursionError):
        raise
    except Exception as err:
        return told, _pack({"load_error": _say(err)}, request["limit"])
    for name in _DATED:
        if getattr(sys.modules.get(name), "datetime", None) is datetime:
            sys.modules[name].datetime = _FixedDate  # type: ignore[attr-defined]
    values: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "is_byte_level": _is_byte_level(tokenizer),
        "ids": [_encode(tokenizer, text, special=False) for text in wanted["texts"]],
        "opened": [_encode(tokenizer, text, special=True) for text in wanted["texts"]],
    }
    try:
        chat = tokenizer.apply_chat_template(
            wanted["chat"], tokenize=False, add_generation_prompt=True
        )
        values |= {"chat": chat, "chat_ids": _encode(tokenizer, chat, special=False)}
    except (MemoryError, RecursionError):
        raise
    except Exception as err:
        values["chat_error"] = _say(err)
    return told, _pack(values, request["limit"])


def _encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def _is_byte_level(tokenizer: Any) -> bool | None:
    """Return whether its tokens are made of bytes, as those of GPT-2; None for a slow one."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return None if decoder is None else b"ByteLevel" in decoder.__getstate__()


def _say(err: Exception) -> str:
    text = " ".join(str(err).split())
    return f"{type(err).__name__}: {text}"[:1000]


def _pack(values: Mapping[str, Any], limit: int) -> bytes:
    data = json.dumps(values).encode("ascii")
    if len(data) > limit:
        raise ValueError(f"it gives more than {limit:,} bytes for the probes")
    return data

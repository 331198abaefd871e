"""Read a small YAML file that a stranger may have written.

Plain values only: no tags, anchors, aliases, merge keys or repeated keys, and bounds on size,
depth and number of values. Knows nothing of compile files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vacc_deploy.errors import CompileFileError
from vacc_deploy.json_files import read_bounded

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 2000
MAX_SCALAR_CHARACTERS = 4096


class _Refused(yaml.YAMLError):
    """YAML that is valid but that a compile file has no use for."""


class _StrictLoader(yaml.SafeLoader):
    """``SafeLoader`` without the features that can make a small file expensive or ambiguous."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth, self.num_nodes = 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _Refused(f"line {line} uses an anchor or an alias; write the value out")
        if event.tag is not None:
            raise _Refused(f"line {line} uses the tag {event.tag[:60]!r}; plain values only")
        self.depth, self.num_nodes = self.depth + 1, self.num_nodes + 1
        if self.depth > MAX_DEPTH or self.num_nodes > MAX_NODES:
            raise _Refused(
                f"line {line} goes beyond {MAX_DEPTH} levels or {MAX_NODES} values; "
                "this is no compile file"
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if len(node.value) > MAX_SCALAR_CHARACTERS:
            raise _Refused(
                f"line {node.start_mark.line + 1} holds a value of {len(node.value)} characters, "
                f"expected {MAX_SCALAR_CHARACTERS} at most"
            )
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise _Refused(f"line {line} uses the merge key '<<'; write the keys out")
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                name = repr(key.value[:60]) if isinstance(key, yaml.ScalarNode) else "a list"
                raise _Refused(f"line {line} has {name} as a repeated or unusable key")
            seen.add(key.value)
        return node


def parse_yaml(text: str, *, where: str) -> Any:
    """Return the plain values of one YAML document.

    Raises:
        CompileFileError: no valid YAML, or a feature that a compile file has no use for.
    """
    try:
        loader = _StrictLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as err:
        # A number or date that looks right but cannot be built is a ValueError in PyYAML.
        reason = " ".join(str(err).split())[:400]
        raise CompileFileError(f"{where} is no usable YAML: {reason}. Correct the file.") from err


def load_yaml(path: Path) -> Any:
    """Read one YAML file of at most ``MAX_FILE_BYTES``.

    Raises:
        CompileFileError: missing, too large, not UTF-8, or refused by ``parse_yaml``.
    """
    advice = "Give a compile file."
    data = read_bounded(path, MAX_FILE_BYTES, error=CompileFileError, advice=advice)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise CompileFileError(f"{path} is not UTF-8 text: {err}. Save it as UTF-8.") from err
    return parse_yaml(text, where=str(path))


class _FlowList(list[Any]):
    """A list that is written in one line, as the vendor writes ``input_ids``."""


class _Dumper(yaml.SafeDumper):
    """``SafeDumper`` with the two representers below."""


def _represent_flow(dumper: yaml.SafeDumper, data: _FlowList) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # PyYAML writes U+0085 plain, and reads it back as a space.
    style = None if data.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(_FlowList, _represent_flow)
_Dumper.add_representer(str, _represent_text)

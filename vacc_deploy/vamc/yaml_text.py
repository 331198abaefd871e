"""Read a small YAML file that a stranger may have written, and write one as the vendor does.

Plain values only: no tags, anchors, aliases, merge keys or repeated keys, and bounds on size,
depth and number of values. Knows nothing of compile files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vacc_deploy.bounds import YAML_BYTES, YAML_CHARACTERS, YAML_DEPTH, YAML_VALUES
from vacc_deploy.errors import CompileFileError
from vacc_deploy.json_files import read_bounded


class _Refused(yaml.YAMLError):
    """YAML that is valid but that a compile file has no use for."""


def _check_events(text: str) -> None:
    """Refuse what can make a small file expensive, before any value is built from it."""
    depth = num_nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark: Any = event.start_mark
        line = mark.line + 1
        # The event of an alias names its anchor too.
        if getattr(event, "anchor", None) is not None:
            raise _Refused(f"line {line} uses an anchor or an alias; write the value out")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if not isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            continue
        if event.tag is not None:
            raise _Refused(f"line {line} uses the tag {event.tag[:60]!r}; plain values only")
        num_nodes += 1
        if depth >= YAML_DEPTH or num_nodes > YAML_VALUES:
            raise _Refused(
                f"line {line} goes beyond {YAML_DEPTH} levels or {YAML_VALUES} values; "
                "this is not a compile file"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif len(event.value) > YAML_CHARACTERS:
            raise _Refused(
                f"line {line} holds a value of {len(event.value)} characters, "
                f"expected {YAML_CHARACTERS} at most"
            )


class _PlainLoader(yaml.SafeLoader):
    """``SafeLoader`` that refuses repeated keys and merge keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check the keys of a mapping, where ``SafeLoader`` would merge others into it."""
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise _Refused(f"line {line} uses the merge key '<<'; write the keys out")
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                name = repr(key.value[:60]) if isinstance(key, yaml.ScalarNode) else "a list"
                raise _Refused(f"line {line} has {name} as a repeated or unusable key")
            seen.add(key.value)


def parse_yaml(text: str, *, where: str) -> Any:
    """Return the plain values of one YAML document.

    Raises:
        CompileFileError: invalid YAML, or a feature that a compile file has no use for.
    """
    try:
        _check_events(text)
        return yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as err:
        # A number or date that looks right but cannot be built is a ValueError in PyYAML.
        reason = " ".join(str(err).split())[:400]
        raise CompileFileError(f"{where} is not usable YAML: {reason}. Correct the file.") from err


def load_yaml(path: Path) -> Any:
    """Read one YAML file of at most ``YAML_BYTES``.

    Raises:
        CompileFileError: missing, too large, not UTF-8, or refused by ``parse_yaml``.
    """
    return parse_yaml(read_text(path), where=str(path))


def read_text(path: Path) -> str:
    """Return the text of one YAML file of at most ``YAML_BYTES``.

    Raises:
        CompileFileError: missing, too large, or not UTF-8.
    """
    advice = "Give a compile file."
    data = read_bounded(path, YAML_BYTES, error=CompileFileError, advice=advice, is_users_own=True)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise CompileFileError(f"{path} is not UTF-8 text: {err}. Save it as UTF-8.") from err


def key_lines(text: str) -> dict[str, int]:
    """Return the line of every key of a text that ``parse_yaml`` takes, by dotted path, from 1."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        # ``parse_yaml`` has bounded depth and number.
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = f"{prefix}{key.value}"
                lines[path] = key.start_mark.line + 1
                walk(value, f"{path}.")

    walk(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return lines


class _Dumper(yaml.SafeDumper):
    """``SafeDumper`` with the two representers below."""


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    # In one line, as the vendor writes input_ids.
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # PyYAML writes U+0085 plain, and reads it back as a space.
    style = None if data.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


def dump_yaml(values: Any) -> str:
    """Return plain values as YAML: keys in their order, a list in one line, no line broken."""
    return yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=1 << 16,  # the default of 80 would break long paths
    )

"""Makes near-valid inputs of valid ones: odd values at random places of the document inside.

One engine for both fuzzers: atheris gives it a seed, hypothesis a ``Random`` that it can shrink. It
opens what it finds packed (safetensors, gzip, zstd, zip), changes a document within, and packs it
again, so that lengths and checksums hold more often than not.
"""

import gzip
import io
import json
import re
import struct
import zipfile
import zlib

# Between the files of a target that reads several.
SEPARATOR = b"\n%%%%\n"
_MAX_CHILDREN, _MAX_UNPACKED = 100, 1 << 20

_PLAIN, _ESCAPED = json.encoder.encode_basestring, json.encoder.encode_basestring_ascii


class Pairs(list):
    """An object of JSON as its pairs, so that a key may appear twice."""


class Raw(str):
    """JSON text that no Python value gives."""


def _nested(depth: int, opening: str, inside: str, closing: str) -> Raw:
    return Raw(opening * depth + inside + closing * depth)


_NUMBERS = (0, 1, -1, 2, 7.0, 1.5, -0.0, 255, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64)
_NUMBERS += (10**9, 10**12, 10**30, 1e308, 5e-324)
_TEXTS = ("", " ", "a", "0", "1", "true", "null", "\0", "\n", "\ud800", "a\udfffb", "\u202ea", "é")
_TEXTS += (
    "日本",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "C:\\a",
    "~",
    "<s>",
    "[PAD7]",
    "__proto__",
)
_TEXTS += ("x" * 300, "y" * 5000, "%1500000d", "{{ a }}", "1e999", "9" * 30, "\U0001f600", "\ufeff")
_ODD = (None, True, False, *_NUMBERS, *_TEXTS, [], Pairs(), [[]], [[1]], Pairs([["a", 1]]))
_ODD += (Raw("1e999"), Raw("-1e999"), Raw("NaN"), Raw("-Infinity"), Raw("9" * 5000), Raw("-0"))
_ODD += (_nested(20, "[", "1", "]"), _nested(99, "[", "", "]"), _nested(102, '{"a":', "1", "}"))
_ODD += (_nested(1200, "[", "", "]"), Raw("[" + "0," * 3000 + "0]"), Raw("[" + "{}," * 300 + "{}]"))
_BYTES = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b'"', b"{", b"[", b"]", b"}", b":", b",")
_BYTES += (b"\xed\xa0\x80", b"\xe2\x80\xae", b"1e999", b"NaN", b"&a ", b"*a", b"!!python/name:os ")
_BYTES += (
    b"<<: ",
    b"%d",
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b"x" * 300,
    b"9" * 400,
    b"\xff" * 8,
    b"\0" * 8,
)


def mutate(data: bytes, random, max_bytes: int = 1 << 16) -> bytes:
    """Return ``data`` with a few changes, cut at ``max_bytes``."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        data = _mutate_packed(data, random)
    return data[:max_bytes]


def _mutate_packed(data: bytes, random) -> bytes:
    """Change what is inside of packed data; else one of the files, or the only one."""
    if random.random() < 0.1:
        return _mutate_bytes(data, random)
    if SEPARATOR in data:
        parts = data.split(SEPARATOR)
        place = random.randrange(len(parts))
        if random.random() < 0.05:
            parts[place] = random.choice((b"", parts[random.randrange(len(parts))]))
        else:
            parts[place] = _mutate_packed(parts[place], random)
        return SEPARATOR.join(parts)
    for is_packed, change in _PACKED:
        if is_packed(data):
            try:
                return change(data, random)
            except _DAMAGED:
                return _mutate_bytes(data, random)
    return _mutate_document(data, random)


def _change_safetensors(data: bytes, random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _mutate_document(data[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _change_gzip(data: bytes, random) -> bytes:
    inner = zlib.decompressobj(wbits=31).decompress(data, _MAX_UNPACKED)
    return gzip.compress(_mutate_packed(inner, random), 1, mtime=0)


def _change_zstd(data: bytes, random) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
            inner = reader.read(_MAX_UNPACKED)
    except zstandard.ZstdError as err:
        raise ValueError(err) from err
    return zstandard.ZstdCompressor(level=1).compress(_mutate_packed(inner, random))


def _change_zip(data: bytes, random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()[:20]]
    place, packed = random.randrange(len(members)), io.BytesIO()
    way = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(packed, "w", way) as archive:
        for number, (info, content) in enumerate(members):
            name = info.filename
            if number == place and random.random() < 0.3:
                name = _mutate_text(name, random).replace("\0", "_") or "a"
            elif number == place:
                content = _mutate_packed(content, random)
            archive.writestr(
                zipfile.ZipInfo(name.encode("utf-8", "replace").decode()), content, way
            )
    return packed.getvalue()


# What reading raises of packed data that an earlier change has damaged.
_DAMAGED = (
    *(zlib.error, zipfile.BadZipFile, EOFError, OSError, ValueError),
    *(NotImplementedError, RuntimeError),  # a zip of another compression, or encrypted
)
_PACKED = (
    (
        lambda data: data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 1 << 20,
        _change_safetensors,
    ),
    (lambda data: data.startswith(b"\x1f\x8b"), _change_gzip),
    (lambda data: data.startswith(b"\x28\xb5\x2f\xfd"), _change_zstd),
    (lambda data: data.startswith(b"PK\x03\x04"), _change_zip),
)


# Behind a sign that begins one: a text, a number, a word or a bracket; and what tells a key.
_VALUE = re.compile(
    rb'(?<=[:,\[{])\s*("(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[\[{])(\s*:)?'
)


# ---- JSON --------------------------------------------------------------------------------------


def _mutate_document(data: bytes, random) -> bytes:
    """Change a JSON document, one line of JSON lines, or mere bytes."""
    if data.lstrip()[:1] not in (b"{", b"["):
        return _mutate_bytes(data, random)
    if random.random() < 0.6 and (match := _find_value(data, random)):
        return data[: match.start(1)] + _splice(match, random) + data[match.end(1) :]
    try:
        return dump(_change_value(parse(data), random)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        pass
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    if len(lines) == 1 or random.random() < 0.2:
        return _mutate_bytes(data, random)
    lines[place : place + 1] = random.choice(
        ([_mutate_document(lines[place], random)] * random.choice((1, 1, 1, 2, 30)), [])
    )
    return b"\n".join(lines)


def _find_value(data: bytes, random) -> re.Match | None:
    """Return a value, a key or an opening bracket, found without parsing the document."""
    start = random.randrange(len(data))
    return _VALUE.search(data, start, start + (1 << 14)) or _VALUE.search(data, 0, 1 << 14)


def _splice(match: re.Match, random) -> bytes:
    """Return what stands in place of what ``_find_value`` has found."""
    found, other = match[1], random.choice(_ODD_JSON)
    if match[2]:  # a key
        key = random.choice(_ODD_KEYS) if random.random() < 0.7 else found
        return key if random.random() < 0.5 else key + b":" + other + b"," + found
    if found in (b"[", b"{"):
        return found + (b"" if found == b"[" else random.choice(_ODD_KEYS) + b":") + other + b","
    if found.isdigit() and len(found) < 20 and random.random() < 0.5:
        return b"%d" % (int(found) + random.choice((-1, 1, 8, 1 << 20)))
    return other


def parse(data: bytes):
    """Return a JSON document with its objects as pairs."""
    return json.loads(data, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def dump(value) -> str:
    """Return the JSON text of what ``parse`` gives, with ``Raw`` values as they are."""
    kind = type(value)
    if kind is Raw:
        return value
    if kind is int:
        return int.__repr__(value)
    if kind is Pairs:
        return "{" + ",".join([f"{dump(key)}:{dump(inner)}" for key, inner in value]) + "}"
    if kind is list:
        return "[" + ",".join(map(dump, value)) + "]"
    if kind is str:
        # Some programs escape other letters, and some write them as they are.
        return (_PLAIN if len(value) % 2 else _ESCAPED)(value)
    return json.dumps(value)


_ODD_JSON = [dump(value).encode("utf-8", "surrogatepass") for value in _ODD]
_ODD_KEYS = [dump(text).encode("utf-8", "surrogatepass") for text in _TEXTS]


def _change_value(value, random):
    """Return a document in which one value, at any depth, is another."""
    if not (isinstance(value, list) and value) or random.random() < 0.08:
        return _other_value(value, random)
    place = random.randrange(len(value))
    is_object = isinstance(value, Pairs)
    kind, result = random.random(), type(value)(value)
    if kind < 0.06:
        del result[place]
    elif kind < 0.12:
        times = random.choice((1, 1, 1, 1, 2, 2, 2, _MAX_CHILDREN))
        result[place:place] = [value[place]] * times
    elif kind < 0.17:
        added = random.choice(_ODD)
        result.insert(place, [_odd_key(value, random), added] if is_object else added)
    elif kind < 0.22 and is_object:
        result[place] = [_odd_key(value, random), value[place][1]]
    elif kind < 0.26 and len(value) > 1:
        other = random.randrange(len(value))
        result[place], result[other] = result[other], result[place]
    elif kind < 0.30 and is_object:
        other = random.randrange(len(value))
        result[place] = [value[place][0], value[other][1]]
    elif is_object:
        result[place] = [value[place][0], _change_value(value[place][1], random)]
    else:
        result[place] = _change_value(value[place], random)
    return result


def _odd_key(value: Pairs, random) -> str:
    key = random.choice(value)[0]
    return random.choice(
        (key, f"{key}s", key.upper(), _mutate_text(key, random), random.choice(_TEXTS))
    )


def _other_value(value, random):
    kind = random.random()
    if kind < 0.35 and isinstance(value, str):
        return _mutate_text(value, random)
    if kind < 0.5 and isinstance(value, (int, float)) and not isinstance(value, bool):
        changes = (value + 1, value - 1, value * 2, -value, str(value))
        return random.choice(changes) if abs(value) < 1e300 else float(value < 0)
    if kind < 0.55:
        return random.choice(([value], Pairs([["a", value]]), [value, value]))
    return random.choice(_ODD)


def _mutate_text(text: str, random) -> str:
    place = random.randrange(len(text) + 1)
    kind = random.random()
    if kind < 0.5:
        return text[:place] + random.choice(_TEXTS) + text[place:]
    if kind < 0.7:
        return text[:place] + text[place + 1 :]
    return text * 2 if kind < 0.8 else text[:place]


# ---- bytes -------------------------------------------------------------------------------------


def _mutate_bytes(data: bytes, random) -> bytes:
    start = random.randrange(len(data) + 1)
    stop = min(len(data), start + random.choice((0, 1, 1, 2, 4, 8, 40)))
    kind = random.random()
    if kind < 0.35:
        return data[:start] + random.choice(_BYTES) + data[random.choice((start, stop)) :]
    if kind < 0.5:
        return data[:start] + data[stop:]
    if kind < 0.6:
        return data[:start] + data[start:stop] * random.choice((2, 3, 200)) + data[stop:]
    if kind < 0.7 and stop > start:
        changed = bytes(byte ^ 1 << random.randrange(8) for byte in data[start:stop])
        return data[:start] + changed + data[stop:]
    if kind < 0.75:
        return data[:start]
    words = re.findall(rb"\w+", data[:4096])
    if kind < 0.9 and words:
        return data[:start] + random.choice(words) + data[stop:]
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    lines.insert(random.randrange(len(lines)), lines.pop(place))
    return b"\n".join(lines)

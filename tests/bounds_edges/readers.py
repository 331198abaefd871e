"""Edges of the bounds on headers, JSON, YAML, calibration files and the records of a run.

Each function reads something at a bound, and with ``over`` something one above it.
"""

import gzip
import io
import json
import zipfile
from contextlib import contextmanager
from unittest.mock import patch

import torch
import yaml
from doubles import Recorder
from safetensors.torch import save_file
from tokenizer_builders import write_tokenizer

from vacc_deploy import bounds
from vacc_deploy.calibration.answer_cache import AnswerCache, hash_json
from vacc_deploy.calibration.collect import SourceTokens, _read_pools
from vacc_deploy.calibration.split import Split, hash_document, is_held_out
from vacc_deploy.checkpoint import adapters, caches, header, reader
from vacc_deploy.checkpoint.manifest import read_manifest
from vacc_deploy.datasets import ceval_tables, explain, files, parquet, sources
from vacc_deploy.datasets.ceval import read_ceval
from vacc_deploy.datasets.odd import OddRecordError, Tally, keep_sound
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.datasets.traces import ASSISTANT, BOS, USER
from vacc_deploy.errors import CalibrationError, CheckpointError
from vacc_deploy.json_files import check_json_memory, read_json
from vacc_deploy.lookup import recognize
from vacc_deploy.outputs import lock
from vacc_deploy.outputs.file_system import this_host
from vacc_deploy.outputs.files import side_files
from vacc_deploy.progress import SILENT
from vacc_deploy.quantize.record_checks import read_number
from vacc_deploy.quantize.records import RECORD_VERSION, RUN_NAME, read_run
from vacc_deploy.reference import windows
from vacc_deploy.text import files as text_files
from vacc_deploy.text.files import read_object
from vacc_deploy.text.prompts import read_prompt_file
from vacc_deploy.text.token_statements import read_numbered
from vacc_deploy.text.tokenizer import Tokenizer
from vacc_deploy.vamc.yaml_text import load_yaml, parse_yaml


def padded(path, text, size):
    """Write a text and blanks up to a size."""
    path.write_bytes(text.encode().ljust(size))
    return path


def sparse(path, size):
    """Write a file of a size that takes no space."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@contextmanager
def as_ours():
    """Raise the errors of inner functions as their callers do."""
    try:
        yield
    except ValueError as err:
        raise CheckpointError(str(err)) from err


def refuse(is_refused):
    """Stand for the refusal of a bound that only ends a search."""
    if is_refused:
        raise CheckpointError("what lies behind the bound is not seen")


# ---- weight files ------------------------------------------------------------------------------


def header_bytes(tmp_path, over):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3)}, path, metadata={"format": "pt" * 50})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    with patch.object(header, "HEADER_BYTES", length - over):
        assert len(header.read_header(path).tensors) == 1


def header_tensors(tmp_path, over):
    data = b'{"data_offsets":1}' + b'"data_offsets"' * bounds.HEADER_TENSORS
    with as_ours():
        header._check_count((data if over else data[18:]).count(b'"data_offsets"'))


def entry(shape, size, name="a"):
    values = {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}
    with as_ours():
        header._parse_entry(name, values, None, 8, None)


def index_bytes(tmp_path, over):
    text = json.dumps({"weight_map": {"a": "model.safetensors"}})
    padded(tmp_path / reader.INDEX_NAME, text, 1000 + over)
    with patch.object(reader, "INDEX_BYTES", 1000):
        assert reader._read_index(tmp_path) == {"a": "model.safetensors"}


def shards(tmp_path, over):
    places = {str(number): f"{number}.safetensors" for number in range(bounds.SHARDS + over)}
    (tmp_path / reader.INDEX_NAME).write_text(json.dumps({"weight_map": places}))
    assert reader._read_index(tmp_path) == places


def folder_names(tmp_path, over):
    count = bounds.FOLDER_NAMES + over
    for number in range(count):
        (tmp_path / str(number)).touch()
    assert len(caches.list_all_names(tmp_path)) == count


# ---- JSON and YAML -----------------------------------------------------------------------------


def json_depth(tmp_path, over):
    depth = bounds.JSON_DEPTH + over
    path = tmp_path / "a.json"
    path.write_text("[" * depth + "1" + "]" * depth)
    read_json(path, limit_bytes=1000)


def json_memory(times):
    def edge(tmp_path, over):
        count = 1 << 20
        blanks = (64 * count - bounds.JSON_FREE_BYTES) // times - count
        with as_ours():
            check_json_memory("[" * count + " " * (blanks - over), times)

    return edge


def json_free_bytes(tmp_path, over):
    count = bounds.JSON_FREE_BYTES // (64 - bounds.JSON_MEMORY)
    with as_ours():
        check_json_memory("[" * (count + over))


def json_digits(tmp_path, over):
    path = tmp_path / "a.json"
    path.write_text("9" * (bounds.JSON_DIGITS + over))
    read_json(path, limit_bytes=1000)


def yaml_depth(tmp_path, over):
    depth = bounds.YAML_DEPTH + over
    parse_yaml("[" * depth + "]" * depth, where="a")


# ---- configuration and tokenizers --------------------------------------------------------------


def tokenizer_bytes(tmp_path, over):
    write_tokenizer(tmp_path)
    size = (tmp_path / "tokenizer.json").stat().st_size
    with patch.object(text_files, "TOKENIZER_BYTES", size - over):
        assert Tokenizer.from_dir(tmp_path).encode("Aa!", add_bos=False) == [32, 64, 0]


def small_file(tmp_path, over):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "refs").mkdir()
    padded(tmp_path / "refs" / "main", "a", bounds.SMALL_FILE_BYTES + over)
    recognize._snapshots(tmp_path)


def token_id(tmp_path, over):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"a": bounds.TOKEN_ID - 1 + over}))
    read_numbered(tmp_path, {})


# ---- calibration files -------------------------------------------------------------------------


def read(tmp_path, kind, data):
    path = tmp_path / "data"
    path.write_bytes(data)
    for _ in read_documents(CalibrationSource(kind, path)):
        pass


def record_bytes(tmp_path, over):
    head, tail = b'{"text":"', b'"}\n'
    size = bounds.RECORD_BYTES + over - len(head) - len(tail)
    read(tmp_path, "c4", head + b"a" * size + tail)


def traces_bytes(tmp_path, over):
    path = tmp_path / "data"
    path.write_text(f"{BOS}{USER}a{ASSISTANT}b" * 20, "utf-8")
    with patch.object(sources, "TRACES_BYTES", path.stat().st_size - over):
        assert len(list(read_documents(CalibrationSource("traces", path)))) == 20


def metered(position):
    """Return an edge: what unpacks to the bound when so much was read of the packed file."""

    def edge(tmp_path, over):
        raw = io.BytesIO(bytes(position))
        raw.seek(position)
        total = bounds.UNPACK_FREE_BYTES + bounds.UNPACK_RATIO * position + over
        unpacked = (tmp_path / "zeros").open("wb+")
        unpacked.truncate(total)
        with unpacked, files._bounded(unpacked, raw, tmp_path) as file:
            while file.read(1 << 20):
                pass

    return edge


def waiting_characters(tmp_path, over):
    eighth = bounds.WAITING_CHARACTERS // 8
    texts = ["a" * eighth] * 7 + ["a" * (eighth + over)]
    entries = [("line 1", OddRecordError("is odd")), *(("line", text) for text in texts)]
    entries.append(("line 10", "a" if not over else OddRecordError("is odd")))
    for _ in keep_sound(tmp_path, iter(entries), lambda text: text, Tally()):
        pass


def pool_turns(tmp_path, over):
    path = tmp_path / "data"
    text = (BOS + f"{USER}a{ASSISTANT}b" * 2048) * (bounds.POOL_TURNS // 4096)
    path.write_text(text + f"{BOS}{USER}a{ASSISTANT}b" * over, "utf-8")
    pools = _read_pools(CalibrationSource("traces", path), 1 << 40, Tally())
    refuse(len(list(pools)) > 1)


def useless_documents(tmp_path, over):
    class Encoder:
        batch_size = 1

        def encode(self, documents):
            return [[1]] * len(documents)

    class InOrder:
        def shuffle(self, pool):
            pass

    texts = [str(number) for number in range(100)]
    held_out = next(text for text in texts if is_held_out(hash_document(text)))
    fitted = next(text for text in texts if not is_held_out(hash_document(text)))
    lines = [fitted] * (1 + bounds.USELESS_DOCUMENTS + over) + [held_out]
    path = tmp_path / "data"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    source = CalibrationSource("c4", path)
    tokens = SourceTokens(source, Encoder(), Split("calibration", 0.0), 1, 1)
    tokens.collect(InOrder(), SILENT)
    refuse(tokens.documents_shared)


def packed_frames(tmp_path, over):
    skipped = b"\x50\x2a\x4d\x18\0\0\0\0"
    for frame in (gzip.compress(b"a"), skipped):
        (tmp_path / "a").write_bytes(frame * (bounds.PACKED_FRAMES + over))
        with files.open_data(tmp_path / "a") as file:
            file.read()


def zstd_window(tmp_path, over):
    # Magic, no flags, the window as exponent and eighths, one raw block of one byte.
    window = ((bounds.ZSTD_WINDOW_BYTES.bit_length() - 11) << 3) | over
    (tmp_path / "a").write_bytes(b"\x28\xb5\x2f\xfd\0" + bytes([window]) + b"\x09\0\0a")
    with files.open_data(tmp_path / "a") as file:
        assert file.read() == b"a"


def ceval_archive(tmp_path, over):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("dev/law_dev.csv", "")
    packed = data.getvalue()
    path = sparse(tmp_path / "a.zip", bounds.CEVAL_ARCHIVE_BYTES + over - len(packed))
    with path.open("ab") as file:
        file.write(packed)
    with ceval_tables.open_archive(path):
        pass


def ceval_directory(tmp_path, over):
    path = sparse(tmp_path / "a", bounds.CEVAL_DIRECTORY_BYTES + 1)
    with ceval_tables._ArchiveFile(path) as file:
        try:
            file.read(bounds.CEVAL_DIRECTORY_BYTES + over)
        except zipfile.BadZipFile as err:
            raise CalibrationError(str(err)) from err


def ceval_files(tmp_path, over):
    for number in range(bounds.CEVAL_FILES + over):
        (tmp_path / str(number)).touch()
    list(ceval_tables._walk(tmp_path))


def ceval_unpacked(tmp_path, over):
    head, row = "id,question,A,B,C,D,answer\n", f"1,{'q' * 100_000},a,b,c,d,A\n"
    table = (head + row * 83).ljust(bounds.CEVAL_TABLE_BYTES, "\n")
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("law", "logic", "marxism", "physician"):
            archive.writestr(f"dev/{name}_dev.csv", table)
        if over:
            archive.writestr("val/law_val.csv", head)
    list(read_ceval(path, Tally()))


def parquet_footer(tmp_path, over):
    length = bounds.PARQUET_FOOTER_BYTES + over
    path = sparse(tmp_path / "a", length + 12)
    with path.open("r+b") as raw:
        raw.seek(-8, io.SEEK_END)
        raw.write(length.to_bytes(4, "little") + parquet.PARQUET_MAGIC)
        parquet._check_footer(raw, path)


def parquet_group(tmp_path, over):
    path = sparse(tmp_path / "a", bounds.PARQUET_GROUP_BYTES)
    parquet._check_group(bounds.PARQUET_GROUP_BYTES + over, 0, path)


def parquet_ratio(tmp_path, over):
    path = sparse(tmp_path / "a", 100_000)
    parquet._check_group(100_000 * bounds.PARQUET_RATIO + over, 0, path)


def explained_names(tmp_path, over):
    for number in range(bounds.EXPLAINED_NAMES + over):
        (tmp_path / str(number)).touch()
    refuse(len(explain._candidates(tmp_path)) < bounds.EXPLAINED_NAMES + over)


def explained_files(tmp_path, over):
    for number in range(bounds.EXPLAINED_FILES + over - 1):
        (tmp_path / f"{number:03}").write_text("words")
    (tmp_path / "last").write_text('{"instruction":"a","output":"b"}')
    refuse("last" not in (explain.explain_other_kind("c4", tmp_path) or ""))


def text_bytes(tmp_path, over):
    class Deaf:
        def encode(self, text, **flags):
            return []

    path = tmp_path / "a.txt"
    path.write_bytes(b"some words " * (bounds.TEXT_BYTES // 11 + over))
    _, is_whole = windows._read_ids(Deaf(), path, bounds.TEXT_BYTES // 32)
    refuse(over and not is_whole)


# ---- outputs and records of a run --------------------------------------------------------------


def run_file(tmp_path, num_layers=2, size=0, resumes=0):
    values = {
        "version": RECORD_VERSION,
        "identity": {},
        "num_layers": num_layers,
        "resumes": resumes,
    }
    padded(tmp_path / RUN_NAME, json.dumps(values), size)
    read_run(tmp_path, ("int8",))


def lock_bytes(tmp_path, over):
    host, space = this_host()
    owner = {"host": host, "space": space, "pid": 2**22 + 1}
    path = padded(tmp_path / ".vacc-deploy-lock-1", json.dumps(owner), bounds.LOCK_BYTES + over)
    lock._refuse_living(tmp_path, [path])


def answers_bytes(tmp_path, over):
    recorder = Recorder()
    cache = AnswerCache(tmp_path, {}, vocab_size=10, max_tokens=10, progress=recorder)
    text = json.dumps({"answers": [[1]], "sha256": hash_json([cache.digest, [[2]], [[1]]])})
    padded(cache.path_of([[2]]), text, bounds.ANSWERS_BYTES + over)
    refuse(cache.get([[2]]) is None)


def side_file(tmp_path, over):
    path = sparse(tmp_path / "README.md", bounds.SIDE_FILE_BYTES + over)
    with path.open("r+b") as file:
        file.write(b"a")
    side_files(tmp_path, with_config=False)


EDGES = {
    "HEADER_BYTES": header_bytes,
    "HEADER_TENSORS": header_tensors,
    "TENSOR_NAME": lambda tmp_path, over: entry([1], 1, "a" * (bounds.TENSOR_NAME + over)),
    "HEADER_RANK": lambda tmp_path, over: entry([1] * (bounds.HEADER_RANK + over), 1),
    "HEADER_NUMBER": lambda tmp_path, over: entry(
        [bounds.HEADER_NUMBER + over], bounds.HEADER_NUMBER + over
    ),
    "INDEX_BYTES": index_bytes,
    "SHARDS": shards,
    "FOLDER_NAMES": folder_names,
    "JSON_DEPTH": json_depth,
    "JSON_MEMORY": json_memory(bounds.JSON_MEMORY),
    "VOCABULARY_MEMORY": json_memory(bounds.VOCABULARY_MEMORY),
    "JSON_FREE_BYTES": json_free_bytes,
    "JSON_DIGITS": json_digits,
    "YAML_BYTES": lambda tmp_path, over: load_yaml(
        padded(tmp_path / "a.yaml", "a: 1\n", bounds.YAML_BYTES + over)
    ),
    "YAML_DEPTH": yaml_depth,
    "YAML_VALUES": lambda tmp_path, over: parse_yaml(
        yaml.safe_dump([1] * (bounds.YAML_VALUES - 1 + over)), where="a"
    ),
    "YAML_CHARACTERS": lambda tmp_path, over: parse_yaml(
        "a" * (bounds.YAML_CHARACTERS + over), where="a"
    ),
    "ADAPTER_CONFIG_BYTES": lambda tmp_path, over: adapters._read_values(
        padded(tmp_path / "adapter_config.json", "{}", bounds.ADAPTER_CONFIG_BYTES + over).parent
    ),
    "SMALL_FILE_BYTES": small_file,
    "TOKENIZER_BYTES": tokenizer_bytes,
    "TOKENIZER_CONFIG_BYTES": lambda tmp_path, over: read_object(
        padded(tmp_path / "a", "{}", bounds.TOKENIZER_CONFIG_BYTES + over)
    ),
    "TOKEN_ID": token_id,
    "PROMPT_BYTES": lambda tmp_path, over: read_prompt_file(
        padded(tmp_path / "a", "a", bounds.PROMPT_BYTES + over)
    ),
    "RECORD_BYTES": record_bytes,
    "BLANK_BYTES": lambda tmp_path, over: read(
        tmp_path, "c4", b'{"text":"a"}\n' + b"\n" * (bounds.BLANK_BYTES + 13 + over)
    ),
    "UNPACK_RATIO": metered(10_000),
    "UNPACK_FREE_BYTES": metered(0),
    "EMPTY_DOCUMENTS": lambda tmp_path, over: read(
        tmp_path, "c4", b'{"text":""}\n' * (bounds.EMPTY_DOCUMENTS + over) + b'{"text":"a"}\n'
    ),
    "TRACES_BYTES": traces_bytes,
    "WAITING_CHARACTERS": waiting_characters,
    "POOL_TURNS": pool_turns,
    "USELESS_DOCUMENTS": useless_documents,
    "PACKED_FRAMES": packed_frames,
    "ZSTD_WINDOW_BYTES": zstd_window,
    "CEVAL_ARCHIVE_BYTES": ceval_archive,
    "CEVAL_DIRECTORY_BYTES": ceval_directory,
    "CEVAL_FILES": ceval_files,
    "CEVAL_TABLE_BYTES": lambda tmp_path, over: ceval_tables.check_size(
        bytes(bounds.CEVAL_TABLE_BYTES + over), "a"
    ),
    "CEVAL_UNPACKED_BYTES": ceval_unpacked,
    "PARQUET_FOOTER_BYTES": parquet_footer,
    "PARQUET_GROUP_BYTES": parquet_group,
    "PARQUET_GROUPS": lambda tmp_path, over: parquet._check_groups(
        bounds.PARQUET_GROUPS + over, tmp_path
    ),
    "PARQUET_RATIO": parquet_ratio,
    "EXPLAINED_NAMES": explained_names,
    "EXPLAINED_FILES": explained_files,
    "TEXT_BYTES": text_bytes,
    "SIDE_FILE_BYTES": side_file,
    "MANIFEST_BYTES": lambda tmp_path, over: read_manifest(
        padded(
            tmp_path / "vacc_deploy.json", '{"format_version":1}', bounds.MANIFEST_BYTES + over
        ).parent
    ),
    "RUN_RECORD_BYTES": lambda tmp_path, over: run_file(
        tmp_path, size=bounds.RUN_RECORD_BYTES + over
    ),
    "RECORD_NUMBER": lambda tmp_path, over: (
        run_file(tmp_path, resumes=bounds.RECORD_NUMBER + over),
        read_number(bounds.RECORD_NUMBER + over),
    ),
    "LOCK_BYTES": lock_bytes,
    "ANSWERS_BYTES": answers_bytes,
}

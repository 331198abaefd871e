"""Checkpoint directories: checked reading, deterministic writing, atomic output."""

from vacc_deploy.checkpoint.files import LINK_MODES, copy_file, place_shard, side_files
from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo, read_header
from vacc_deploy.checkpoint.manifest import (
    LinkedFile,
    model_name,
    read_manifest,
    relative_source,
    write_manifest,
)
from vacc_deploy.checkpoint.output import (
    MANIFEST_NAME,
    check_output,
    check_space,
    output_directory,
    replace_text,
)
from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint
from vacc_deploy.checkpoint.writer import (
    WrittenFile,
    hash_file,
    shard_name,
    write_index,
    write_index_map,
    write_shard,
    write_text,
)

__all__ = [
    "INDEX_NAME",
    "LINK_MODES",
    "MANIFEST_NAME",
    "SINGLE_FILE",
    "Checkpoint",
    "LinkedFile",
    "ShardHeader",
    "TensorInfo",
    "WrittenFile",
    "check_output",
    "check_space",
    "copy_file",
    "hash_file",
    "model_name",
    "output_directory",
    "place_shard",
    "read_header",
    "read_manifest",
    "relative_source",
    "replace_text",
    "shard_name",
    "side_files",
    "write_index",
    "write_index_map",
    "write_manifest",
    "write_shard",
    "write_text",
]

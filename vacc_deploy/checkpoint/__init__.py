"""Checkpoint directories: checked reading, deterministic writing, atomic output."""

from vacc_deploy.checkpoint.files import LINK_MODES, copy_file, place_shard, side_files
from vacc_deploy.checkpoint.fingerprint import fingerprint_file, fingerprint_weights
from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo, read_header
from vacc_deploy.checkpoint.manifest import (
    LinkedFile,
    library_versions,
    model_name,
    read_manifest,
    relative_source,
    write_manifest,
)
from vacc_deploy.checkpoint.output import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    RUN_FILE_PREFIX,
    check_output,
    check_space,
    clear_partial,
    output_directory,
    partial_path,
    remove_leftovers,
    remove_path,
    replace_text,
    sync_directory,
)
from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint, read_tensor
from vacc_deploy.checkpoint.writer import (
    WrittenFile,
    record_file,
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
    "MAX_MANIFEST_BYTES",
    "RUN_FILE_PREFIX",
    "SINGLE_FILE",
    "Checkpoint",
    "LinkedFile",
    "ShardHeader",
    "TensorInfo",
    "WrittenFile",
    "check_output",
    "check_space",
    "clear_partial",
    "copy_file",
    "fingerprint_file",
    "fingerprint_weights",
    "record_file",
    "library_versions",
    "model_name",
    "output_directory",
    "partial_path",
    "place_shard",
    "read_header",
    "read_manifest",
    "read_tensor",
    "relative_source",
    "remove_path",
    "remove_leftovers",
    "replace_text",
    "shard_name",
    "side_files",
    "sync_directory",
    "write_index",
    "write_index_map",
    "write_manifest",
    "write_shard",
    "write_text",
]

"""Every bound on what is read from a stranger, each stated here and nowhere else.

A reader compares with the bound before it uses a size, so that a small file cannot take all memory
or all time. ``docs/security.md`` prints this table, and ``tests/test_bounds.py`` tries each bound
at its edge.
"""

from __future__ import annotations


class Bound(int):
    """A limit, with what the table of ``docs/security.md`` says about it.

    Attributes:
        unit: of the number, such as ``bytes``, ``values`` or ``seconds``.
        what: what is bounded, a noun phrase.
        usual: what published files have, a phrase with a figure.
    """

    unit: str
    what: str
    usual: str

    def __new__(cls, limit: int, unit: str, what: str, usual: str) -> Bound:
        """Return the bound; it computes and prints as its number."""
        bound = super().__new__(cls, limit)
        bound.unit, bound.what, bound.usual = unit, what, usual
        return bound


# ---- weight files ------------------------------------------------------------------------------
HEADER_BYTES = Bound(
    100_000_000, "bytes", "the header of a safetensors file, as in its own library", "up to 30 kB"
)
# Each takes some 800 bytes of memory.
HEADER_TENSORS = Bound(1 << 18, "tensors", "the header of a safetensors file", "up to 723")
TENSOR_NAME = Bound(512, "characters", "the name of a tensor, all of them printable", "up to 60")
HEADER_RANK = Bound(8, "dimensions", "the shape of a tensor", "1 or 2")
# 1 TiB, more than any file of weights.
HEADER_NUMBER = Bound(
    1 << 40, "", "a dimension, an offset or a size in bytes of a tensor", "up to 5 GB"
)
INDEX_BYTES = Bound(64 << 20, "bytes", "model.safetensors.index.json", "up to 70 kB")
# File systems take 255, also with what downloaders put behind the name.
FILE_NAME_BYTES = Bound(200, "bytes", "the name of a weight file", "33")
# Also bounds what a name can make us list.
SHARDS = Bound(
    10_000, "files", "the weight files that an index, or one file name, tells of", "1 to 163"
)
FOLDER_NAMES = Bound(
    10_000,
    "names",
    "a checkpoint's directory; of one that is searched the rest is not looked at",
    "under 100",
)

# Of GGUF files, which are read only where quantize wrote them.
GGUF_HEADER_BYTES = Bound(
    64 << 20, "bytes", "what stands in front of the tensors of a GGUF file", "up to 10 MB"
)
GGUF_TENSORS = Bound(1 << 16, "tensors", "a GGUF file", "up to 723")
GGUF_KEYS = Bound(4096, "key-values", "a GGUF file", "about 35")
GGUF_KEY_BYTES = Bound(512, "bytes", "a key or the name of a tensor in a GGUF file", "up to 40")
GGUF_ARRAY_VALUES = Bound(
    1 << 22, "values", "a list in a GGUF file, which holds no lists", "up to 300,000"
)
# A list of texts is passed over text by text, and an empty one is eight bytes.
GGUF_TEXTS = Bound(1 << 20, "texts", "the lists of a GGUF file, all together", "up to 450,000")
GGUF_TEXT_BYTES = Bound(1 << 20, "bytes", "a text in a GGUF file", "up to 25 kB")
GGUF_DIMENSIONS = Bound(4, "dimensions", "the shape of a tensor in a GGUF file", "1 or 2")

# ---- JSON and YAML -----------------------------------------------------------------------------
JSON_DEPTH = Bound(
    100, "levels", "lists and objects within each other in a JSON file", "up to 8 levels"
)
# A reader knows the size of a text, not what its values take: an empty list is two bytes of text
# and 72 of memory. Reckoned from the marks of the text, before any value is made.
JSON_MEMORY = Bound(
    8, "times the text", "memory of the values of a JSON file, above JSON_FREE_BYTES", "1 to 6"
)
VOCABULARY_MEMORY = Bound(
    16, "times the text", "the same of the vocabulary of a tokenizer", "4 to 12"
)
JSON_FREE_BYTES = Bound(
    16 << 20, "bytes", "memory of the values of a JSON file, whatever its size", "under 1 MB"
)
# The time to read a number grows with the square of its digits.
JSON_DIGITS = Bound(400, "digits", "a whole number in a JSON file", "up to 12")
YAML_BYTES = Bound(64 << 10, "bytes", "a compile file", "up to 2 kB")
YAML_DEPTH = Bound(20, "levels", "lists and mappings within each other in a compile file", "4")
YAML_VALUES = Bound(2000, "values", "a compile file, lists, mappings and keys included", "about 60")
YAML_CHARACTERS = Bound(4096, "characters", "one value of a compile file", "up to 100")

# ---- configuration -----------------------------------------------------------------------------
ADAPTER_CONFIG_BYTES = Bound(1 << 20, "bytes", "adapter_config.json", "about 1 kB")
SMALL_FILE_BYTES = Bound(1 << 20, "bytes", "a list of names or a reference in a cache", "41 bytes")
CONFIG_BYTES = Bound(1 << 20, "bytes", "config.json or config_vacc.json", "under 3 KB")
GENERATION_CONFIG_BYTES = Bound(1 << 20, "bytes", "generation_config.json", "under 1 KB")
NUM_LAYERS = Bound(1 << 10, "layers", "num_hidden_layers, also in the record of a run", "up to 126")
NUM_HEADS = Bound(1 << 10, "heads", "num_attention_heads, num_key_value_heads", "up to 128")
HEAD_SIZE = Bound(1 << 13, "channels", "head_dim", "up to 256")
HIDDEN_SIZE = Bound(1 << 16, "channels", "hidden_size", "up to 16,384")
INTERMEDIATE_SIZE = Bound(1 << 18, "channels", "intermediate_size", "up to 53,248")
VOCAB_SIZE = Bound(1 << 22, "tokens", "vocab_size", "up to 256,000")
CONTEXT_TOKENS = Bound(
    1 << 24, "tokens", "max_position_embeddings, sliding_window", "up to 4,194,304"
)
CONFIG_NUMBER = Bound(
    10**30,
    "",
    "any number of the architecture (rope_theta, factor, rms_norm_eps), and one divided by it",
    "1e-6 to 1e7",
)
END_TOKENS = Bound(1000, "ids", "the list eos_token_id", "up to 3 ids")

# ---- tokenizers --------------------------------------------------------------------------------
TOKENIZER_BYTES = Bound(
    64 << 20, "bytes", "tokenizer.json, vocab.json and merges.txt", "2 to 17 MB"
)
TOKENIZER_CONFIG_BYTES = Bound(
    8 << 20, "bytes", "tokenizer_config.json and the other small files of a tokenizer", "3 to 60 kB"
)
# Nine digits are quick to read; the library takes four times as many ids.
TOKEN_ID = Bound(10**9, "", "the id of a token", "up to 152,000")
PROMPT_BYTES = Bound(
    16 << 20, "bytes", "a file of prompts, and what generate reads of a pipe", "few kB"
)
TOKENIZED_BYTES = Bound(
    4 << 20, "bytes", "one text that is made tokens; a text for verify is cut", "up to 200 kB"
)
# Of the process in which the tokenizers library runs. A text counts at least 512 bytes.
TOKENIZER_CPU_SECONDS = Bound(
    5, "seconds", "to read a tokenizer and to use it; and one more for each MB of it", "0.1 to 0.7"
)
TOKENIZER_CPU_PER_MB = Bound(4, "seconds a MB", "the same, for the texts that it gets", "0.1 to 1")
TOKENIZER_MEMORY = Bound(
    512 << 20, "bytes", "memory to read a tokenizer and to use it", "50 to 160 MiB"
)
TOKENIZER_MEMORY_TIMES = Bound(
    20, "times the file", "the same, above TOKENIZER_MEMORY; 15 times as much of a text", "14"
)

WORKER_MEMORY = Bound(
    2 << 30, "bytes", "the same, and that of a chat template, whatever it works on", "50 to 300 MiB"
)

# ---- chat templates ----------------------------------------------------------------------------
TEMPLATE_CHARACTERS = Bound(1 << 18, "characters", "a chat template", "0.3 to 25 kB")
TEMPLATE_CPU_SECONDS = Bound(
    5, "seconds", "to compile a chat template and to render all conversations", "0.1"
)
TEMPLATE_CPU_PER_MB = Bound(
    4, "seconds a MB", "the same, of conversations; one counts at least 512 bytes", "0.3"
)
TEMPLATE_MEMORY = Bound(
    256 << 20, "bytes", "memory to compile a chat template or to render a conversation", "10 MB"
)
CONVERSATION_BYTES = Bound(
    32 << 20, "bytes", "one conversation that a chat template gets", "up to 200 kB"
)
RENDERED_FREE_BYTES = Bound(
    1 << 20, "bytes", "what a chat template may write for any conversation", "up to 200 kB"
)
RENDERED_TIMES = Bound(
    16, "times the conversation", "what it may write above RENDERED_FREE_BYTES", "1 to 2"
)
RENDERED_BYTES = Bound(64 << 20, "bytes", "the same, whatever the conversation is", "up to 200 kB")

# ---- calibration files -------------------------------------------------------------------------
RECORD_BYTES = Bound(
    16 << 20,
    "bytes",
    "a line or a record of JSON data, and a row of Parquet as JSON",
    "up to 200 kB",
)
BLANK_BYTES = Bound(
    1 << 18, "bytes", "blanks in a row in a JSON array, or more blank lines than records", "none"
)
# Text packs to a third or a tenth of its size.
UNPACK_RATIO = Bound(30, "times", "gzip or zstd data, unpacked, above UNPACK_FREE_BYTES", "3 to 10")
UNPACK_FREE_BYTES = Bound(
    16 << 20, "bytes", "what gzip or zstd data of any size may unpack to", "2 to 900 MB"
)
EMPTY_DOCUMENTS = Bound(
    10_000, "documents", "without text before one with text; ten more for each of these", "none"
)
TRACES_BYTES = Bound(64 << 20, "bytes", "a file of traces", "51 kB")
WAITING_CHARACTERS = Bound(
    64 << 20, "characters", "sound records that wait behind too many odd ones", "none"
)
# A short text takes more memory for what is around it than for its letters.
POOL_TURNS = Bound(
    1 << 18,
    "turns",
    "the texts and turns of one source that are shuffled at once",
    "104,000",
)
# Of documents that differ every eighth or so is of use, whatever they are.
USELESS_DOCUMENTS = Bound(
    20_000, "documents", "in a row that find no room or are kept for evaluation", "under 200"
)
# A frame or a member takes time, also where it holds nothing.
PACKED_FRAMES = Bound(
    4096, "frames", "a MiB of packed data (gzip calls them members), and 4096 more", "1 to 50"
)
ZSTD_WINDOW_BYTES = Bound(
    1 << 27, "bytes", "the window of zstd data, as in the program zstd", "8 MB"
)
CEVAL_ARCHIVE_BYTES = Bound(
    16 << 20, "bytes", "the archive of C-Eval, or the tables of its folder", "1.5 MB"
)
CEVAL_DIRECTORY_BYTES = Bound(
    1 << 20, "bytes", "the list of members in the archive of C-Eval", "18 kB"
)
CEVAL_UNPACKED_BYTES = Bound(
    32 << 20, "bytes", "the tables of C-Eval that are read, unpacked, in any form", "0.6 MB"
)
CEVAL_FILES = Bound(4096, "files", "the archive of C-Eval, or its folder", "159")
CEVAL_TABLE_BYTES = Bound(8 << 20, "bytes", "one unpacked table of C-Eval", "up to 172 kB")
# Memory and time grow with the columns that it names: some 200 bytes of memory for one byte.
PARQUET_FOOTER_BYTES = Bound(1 << 20, "bytes", "the footer of a Parquet file", "1 to 100 kB")
# Of the process in which pyarrow runs, whatever the file states of itself.
PARQUET_CPU_SECONDS = Bound(5, "seconds", "to read a Parquet file, whatever its size", "0.1")
PARQUET_CPU_PER_MB = Bound(1, "seconds a MB", "the same, above PARQUET_CPU_SECONDS", "0.05 to 0.1")
PARQUET_MEMORY = Bound(512 << 20, "bytes", "memory to read a Parquet file", "20 to 100 MiB")
PARQUET_MEMORY_TIMES = Bound(4, "times the file", "the same, above PARQUET_MEMORY", "under 1")
# Each takes a millisecond, also where it holds nothing.
PARQUET_GROUPS = Bound(4096, "row groups", "a Parquet file", "1 to 1,000")
PARQUET_GROUP_BYTES = Bound(1 << 30, "bytes", "a row group of a Parquet file, unpacked", "0.3 GB")
# Text packs to a tenth. What states far more than the file could hold is made to fill the memory.
PARQUET_RATIO = Bound(
    1000, "times the file", "a row group of a Parquet file above 16 MiB, unpacked", "10"
)
EXPLAINED_NAMES = Bound(
    1000,
    "names",
    "a directory given in place of a data file; the rest is not looked at",
    "under 100",
)
EXPLAINED_FILES = Bound(
    20, "files", "that are opened in a directory given in place of a data file", "under 20"
)
TEXT_BYTES = Bound(64 << 20, "bytes", "what is read at once of a text for verify", "170 kB")

# ---- tasks of evaluate -------------------------------------------------------------------------
EVALUATED_TOKENS = Bound(
    8192,
    "tokens",
    "a question of C-Eval; of its examples as many as fit above it are asked with it",
    "up to 300, with examples 1,200",
)
# All of them are held at a time, with their answers.
PROBLEMS = Bound(20_000, "questions", "a file of problems of mathematics", "500 to 12,500")
PROBLEM_CHARACTERS = Bound(
    32 << 20, "characters", "the questions and results of such a file", "up to 3 million"
)

# ---- outputs, manifests and records of a run ---------------------------------------------------
SIDE_FILE_BYTES = Bound(
    256 << 20, "bytes", "a small file that travels with the weights", "up to 17 MB"
)
MANIFEST_BYTES = Bound(
    16 << 20, "bytes", "the manifest, the report or the timing file of a run", "10 to 400 kB"
)
# The scales of the largest layer that HIDDEN_SIZE and INTERMEDIATE_SIZE allow take 2.3 MB.
RUN_RECORD_BYTES = Bound(
    4 << 20, "bytes", "the record of a run or of one of its shards", "up to 200 kB"
)
RECORD_NUMBER = Bound(
    1 << 40, "", "a number in such a record: seconds, errors, values, resumes", "up to 100,000"
)
SEALED_TEXT_BYTES = Bound(
    8 << 20, "bytes", "a compile file or a page that may be replaced", "2 to 800 kB"
)
LOCK_BYTES = Bound(4096, "bytes", "a lock file", "about 100 bytes")
ANSWERS_BYTES = Bound(1 << 24, "bytes", "a file of saved answers", "130 kB")
LINK_STEPS = Bound(
    8, "directories", "directories of links that were prepared from one another", "1 or 2"
)

# ---- messages ----------------------------------------------------------------------------------
MESSAGE_CHARACTERS = Bound(
    4000, "characters", "an error, a warning or a note (its middle is left out)", "up to 600"
)

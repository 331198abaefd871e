"""Rules for the files of a directory: weights, index, manifest, and what is served beside them."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, NOTE, WARNING, Rule

_DOWNLOAD = "Download the file again from the model's repository."
_AGAIN = "Make the directory again with the command that wrote it."

UNREADABLE = Rule(
    "VD100",
    ERROR,
    "the directory cannot be read as a checkpoint",
    "No program can load it.",
    "Do what the message says.",
)
MISSING_FILE = Rule(
    "VD101",
    ERROR,
    "a weight file is missing",
    "Some loaders fill the gap with random numbers and say nothing.",
    _DOWNLOAD,
)
DAMAGED_FILE = Rule(
    "VD102", ERROR, "a weight file is damaged", "Its tensors cannot be read.", _DOWNLOAD
)
INDEX_DISAGREES = Rule(
    "VD103",
    ERROR,
    "the index and the weight files disagree",
    "A loader that follows the index finds no tensor, or another one.",
    "Take index and weights from the same revision of the model.",
)
STORED_TWICE = Rule(
    "VD104",
    ERROR,
    "a tensor is stored twice",
    "Which of the two is loaded depends on the program.",
    "Remove the file that does not belong to the model.",
)
TOTAL_SIZE = Rule(
    "VD105",
    WARNING,
    "the index states another total size than the files have",
    "The index was written for other files, or by a program that counts otherwise.",
    "Take index and weights from the same revision of the model.",
    is_fixable=True,
)
OTHER_FORM = Rule(
    "VD106",
    ERROR,
    "the directory is not in the published form",
    "vamc may read other tensors or values than this tool does.",
    "Run vacc-deploy prepare, which writes the published form.",
)
NO_INDEX = Rule(
    "VD107",
    ERROR,
    "there are several weight files and no index",
    "Loaders find several files by the index only.",
    "Run vacc-deploy prepare, which writes the index.",
    is_fixable=True,
)
INDEX_SETTLED = Rule(
    "VD108",
    WARNING,
    "the index does not hold for the weight files",
    "The usual loaders read the files all the same. Whether vamc does is not published.",
    "Run vacc-deploy prepare, or let check --fix write the index.",
    is_fixable=True,
)
NO_MANIFEST = Rule(
    "VD110",
    NOTE,
    "there is no manifest",
    "Nothing says which files belong here and what they held, so they cannot be compared.",
    "Prepare the directory with vacc-deploy.",
)
CHANGED_FILE = Rule(
    "VD111",
    ERROR,
    "a file is not the one that the manifest lists",
    "The directory is no longer what was written and verified.",
    _AGAIN,
)
FOREIGN_FILE = Rule(
    "VD112",
    ERROR,
    "a weight file lies here that nobody wrote",
    "A loader may read it in place of the right one.",
    "Move the file away.",
)
BROKEN_MANIFEST = Rule(
    "VD113",
    ERROR,
    "the manifest cannot be used",
    "Whether the files are the right ones cannot be told.",
    _AGAIN,
)
EDITED_MANIFEST = Rule(
    "VD114",
    WARNING,
    "the manifest was changed after it was written",
    "What it says of the model, of its source and of the files may be wrong.",
    _AGAIN,
)
NO_TOKENIZER = Rule(
    "VD120",
    ERROR,
    "the tokenizer is missing",
    "The served model cannot read a text.",
    "Copy tokenizer.json and tokenizer_config.json from the model's repository.",
)
NO_TOKENIZER_CONFIG = Rule(
    "VD121",
    ERROR,
    "tokenizer_config.json is missing",
    "It names the class of the tokenizer, its special tokens and the chat template.",
    "Copy the file from the model's repository.",
)
NO_GENERATION_CONFIG = Rule(
    "VD122",
    NOTE,
    "generation_config.json is missing",
    "A server then samples by its own defaults. A reasoning model may repeat itself without end.",
    "Copy the file from the model's repository.",
)
NO_CHAT_TEMPLATE = Rule(
    "VD123",
    WARNING,
    "there is no chat template",
    "A chat server cannot write a conversation as the model was trained on it.",
    "Copy chat_template.jinja or tokenizer_config.json from the model's repository.",
)

"""Rules for the tokenizer: its files, and what the installed transformers makes of them."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, NOTE, WARNING, Rule

_RESTORE = "Restore the tokenizer files from the model's repository."
_OTHER_IDS = "The model gets other tokens than it was trained with, and answers worse or nonsense."
_RELEASE = "Use another release of transformers: docs/tokenizer.md lists some that were tried."
_BOTH = "Take the configuration files and the tokenizer from the same revision of the model."

TOKENIZER_UNUSABLE = Rule(
    "VD401",
    ERROR,
    "the tokenizer cannot be used",
    "No text can be made token ids, or its ids are not those that the model was trained with.",
    _RESTORE,
)
IDS_DIFFER = Rule(
    "VD402",
    ERROR,
    "the installed transformers gives other ids than tokenizer.json",
    _OTHER_IDS,
    _RELEASE,
)
WRONG_FORM = Rule(
    "VD403",
    ERROR,
    "the installed transformers reads the tokenizer as one of another form",
    "Some 5.x releases choose the form by the class that tokenizer_config.json names, and take "
    f"that of Llama for the byte-level tokenizers of R1-Distill and R1-0528. {_OTHER_IDS}",
    'Write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json, or use another '
    "release of transformers.",
)
LETTER_FORMS = Rule(
    "VD404",
    NOTE,
    "the installed transformers composes letters that tokenizer.json leaves apart",
    "A letter that is written as two characters (e and an accent) gets other ids. Such text is "
    "rare.",
    _RELEASE,
)
LIBRARY_FAILS = Rule(
    "VD405",
    WARNING,
    "the installed transformers gives no ids",
    "A server that reads the directory with it may not start, and the ids could not be compared.",
    "Do what the message says, or use another release of transformers.",
)
LOST_TEXT = Rule(
    "VD406",
    ERROR,
    "a text does not come back from its ids",
    "The model does not see the text, or its answers are shown changed.",
    _RESTORE,
)
NORMALIZED_TEXT = Rule(
    "VD407",
    NOTE,
    "the tokenizer changes a text before it is encoded",
    "Its normalizer does so: the text that comes back from the ids is another one.",
    "Nothing, if the model's makers want it so.",
)
DOUBLE_BOS = Rule(
    "VD410",
    ERROR,
    "a prompt begins with two BOS tokens",
    "The models were trained with one. A second one changes the answer.",
    _RESTORE,
)
CHAT_WITHOUT_BOS = Rule(
    "VD411",
    WARNING,
    "the chat template writes no BOS for a model that begins with one",
    "Servers tokenize what a template wrote without adding special tokens, so the BOS is missing.",
    "Restore the chat template from the model's repository.",
)
BOS_BY_BOTH = Rule(
    "VD412",
    NOTE,
    "the chat template and the tokenizer both put a BOS",
    "A program that tokenizes a rendered conversation like plain text puts two.",
    "Tokenize what the template wrote without special tokens (add_special_tokens false).",
)
OTHER_OPENING = Rule(
    "VD413",
    WARNING,
    "the installed transformers adds other special tokens to a text",
    "A plain prompt begins or ends otherwise than the tokenizer's files say.",
    _RELEASE,
)
SAVED_SETTINGS = Rule(
    "VD414",
    WARNING,
    "tokenizer.json holds a truncation or a padding",
    "A calibration run saved it. Programs that use the file as it is cut prompts or fill them up.",
    _RESTORE,
)
SPECIAL_IDS = Rule(
    "VD420",
    WARNING,
    "the tokenizer and a configuration file state different special ids",
    "Programs take the id from one or the other: one of them begins or ends texts wrongly.",
    _BOTH,
)
KNOWN_BOS = Rule(
    "VD421",
    NOTE,
    "config.json states another BOS than the tokenizer, as published",
    "DeepSeek-R1-Distill-Qwen is published so. The tokenizer and generation_config.json count.",
    "Nothing. A program that takes the BOS from config.json is wrong with this model.",
)
PAD_IDS = Rule(
    "VD422",
    NOTE,
    "the tokenizer and a configuration file state different ids for padding",
    "It matters where texts of different lengths are computed together without a mask.",
    _BOTH,
)
ENDLESS_ANSWERS = Rule(
    "VD423",
    ERROR,
    "the token that ends an answer ends no generation",
    "Answers go on until the limit of tokens.",
    "Add its id to eos_token_id of generation_config.json.",
)
OUTSIDE_VOCABULARY = Rule(
    "VD424",
    ERROR,
    "a token has an id for which the model has no row",
    "A text that holds it cannot be computed, or reads beyond the embedding.",
    _BOTH,
)
TEMPLATE_FAILS = Rule(
    "VD430",
    ERROR,
    "the chat template cannot be used",
    "No conversation can be served.",
    "Restore the chat template from the model's repository.",
)
NO_GENERATION_PROMPT = Rule(
    "VD431",
    WARNING,
    "the chat template does not open the answer",
    "The model is not told that it is its turn, and may go on with the question.",
    "Restore the chat template from the model's repository.",
)
CHAT_DIFFERS = Rule(
    "VD432",
    ERROR,
    "the installed transformers writes another conversation",
    _OTHER_IDS,
    _RELEASE,
)
LIBRARY_CHAT_FAILS = Rule(
    "VD433",
    WARNING,
    "the installed transformers cannot use the chat template",
    "A server that uses it refuses conversations.",
    _RELEASE,
)
SETTLED = Rule(
    "VD440",
    NOTE,
    "the tokenizer files needed a decision",
    "Other programs may decide otherwise.",
    "Run vacc-deploy prepare, which writes files that all read alike, or read the message.",
)

# Errors of the transformers on this machine, which another directory would show too.
OF_TRANSFORMERS = (IDS_DIFFER, WRONG_FORM, CHAT_DIFFERS)

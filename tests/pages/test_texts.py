"""The catalogue of a page's texts."""

import re

from texts import ROOT

from vacc_deploy.cli.report import LANGUAGES as OPTION_VALUES
from vacc_deploy.pages import texts as module
from vacc_deploy.pages.texts import LANGUAGES, TEXTS

PARTS = [
    value
    for name, value in vars(module).items()
    if isinstance(value, dict) and name != "TEXTS" and not name.startswith("__")
]
FILES = [path for path in (ROOT / "vacc_deploy/pages").glob("*.py") if "texts" not in path.name]
CODE = "".join(path.read_text("utf-8") for path in FILES)
# The same in both languages but for their signs: names of things, and what is filled in.
ALIKE = {"sqnr", "hash", "activations-float", "nats", "word-kl", "heat-title", "float16-end"}
# Their ends are put together: of a command, a section, a severity, a level.
MADE = re.compile(
    r"(title|kicker|section|lead|severity|activations|heat)-|(errors|warnings|notes)$"
)


def test_the_option_offers_the_languages_of_the_catalogue():
    assert OPTION_VALUES == LANGUAGES


def test_no_text_is_there_twice():
    assert sum(map(len, PARTS)) == len(TEXTS)


def test_every_text_is_in_both_languages():
    for key, both in TEXTS.items():
        assert len(both) == len(LANGUAGES) and all(both), key
        english, chinese = both
        names = [set(re.findall(r"\{(\w+)\}", text)) for text in both]
        assert names[0] == names[1], key
        assert key in ALIKE or re.search("[\u4e00-\u9fff]", chinese), key
        assert not re.search("[\u3000-\uffef]", english), key
        # Chinese text has its own punctuation.
        assert not re.search("[\u4e00-\u9fff][,;:!?(]|[,;:!?)][\u4e00-\u9fff]", chinese), key


def test_every_text_is_used():
    assert [key for key in TEXTS if f'"{key}"' not in CODE and not MADE.match(key)] == []
    sections = set(re.findall(r'Section\(\s*"([a-z]+)"', CODE))
    assert {key[8:] for key in TEXTS if key.startswith("section-")} == sections

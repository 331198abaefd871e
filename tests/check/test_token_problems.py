"""Each rule for the tokenizer is broken once; transformers is played by what it would return."""

import json

import pytest
import tokenizers
from checkpoint_builders import build_config
from library_readings import agreeing, finished
from token_checks import CHATML, edit, find, only, write
from tokenizer_builders import (
    BOS,
    BOS_ID,
    R1_0528_TEMPLATE,
    R1_TEMPLATE,
    build_backend,
    r1_0528_config,
    tokenizer_config,
)

from vacc_deploy.check.tokenizer import check_tokens
from vacc_deploy.models.parse import parse_config
from vacc_deploy.problems import tokens
from vacc_deploy.problems.files import NO_CHAT_TEMPLATE, NO_TOKENIZER
from vacc_deploy.text.library import LibraryReading
from vacc_deploy.text.probes import PROBES


def change_last(ids):
    return (*ids[:-1], ids[-1] + 1)


def test_a_sound_tokenizer_passes_and_r1_gives_a_note_only(tmp_path):
    contract, problems = find(write(tmp_path))
    assert contract.passed and set(problems) == {tokens.BOS_BY_BOTH}
    contract, problems = find(
        write(tmp_path / "b", config=tokenizer_config(chat_template=CHATML, add_bos_token=False))
    )
    assert contract.passed and problems == {}


def test_the_form_of_r1_0528_passes(tmp_path):
    backend = build_backend(post_processor_bos=False)
    contract, problems = find(write(tmp_path, backend=backend, config=r1_0528_config()))
    assert contract.passed and problems == {}
    assert (contract.bos_by_file, contract.bos_in_chat) == (0, 1)


def test_no_chat_template_is_a_warning(tmp_path):
    config = {k: v for k, v in tokenizer_config().items() if k != "chat_template"}
    problem = only(write(tmp_path, config=config), NO_CHAT_TEMPLATE)
    assert problem.rule.severity == "warning" and problem.where == "tokenizer_config.json"


def test_other_ids_are_found_with_the_place(tmp_path):
    sound = agreeing(write(tmp_path))
    ids = (sound.ids[0], change_last(sound.ids[1]), *sound.ids[2:])
    contract, _ = find(tmp_path, ids=ids)
    assert not contract.passed and [probe.name for probe in contract.different] == ["Chinese"]
    problem = only(tmp_path, tokens.IDS_DIFFER, ids=ids)
    last, place = sound.ids[1][-1], len(sound.ids[1]) - 1
    assert str(problem) == (
        "transformers 9.8.7 gives other ids than tokenizer.json for 1 of 11 probes (Chinese). In "
        f"the first one the ids differ from number {place} on: [{last + 1}], expected [{last}]"
    )
    assert problem.rule.severity == "error"


def test_other_ids_of_the_conversation_are_found(tmp_path):
    sound = agreeing(write(tmp_path))
    problem = only(tmp_path, tokens.IDS_DIFFER, chat_ids=sound.chat_ids[1:])
    assert "1 of 11 probes (chat)" in str(problem)


def test_the_wrong_form_of_5_10_is_named_with_its_cure(tmp_path):
    sound = agreeing(write(tmp_path, config=r1_0528_config(add_bos_token=True)))
    ids = tuple(ids[::2] for ids in sound.ids)
    changes = {"ids": ids, "is_byte_level": False, "class_name": "LlamaTokenizer"}
    problem = only(tmp_path, tokens.WRONG_FORM, **changes)
    assert "reads the directory as LlamaTokenizer, which does not split text into bytes" in problem
    assert "10 of 11 probes (English, " in problem and "4 more" not in problem
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in problem.rule.fix


def test_a_transformers_that_composes_letters_is_a_note(tmp_path):
    folder = write(tmp_path)
    names = [name for name, _ in PROBES]
    sound, place = agreeing(folder), names.index("composed letters")
    composed = agreeing(edit(write(tmp_path / "nfc"), normalizer={"type": "NFC"}))
    assert composed.ids[place] != sound.ids[place]
    ids = (*sound.ids[:place], composed.ids[place], *sound.ids[place + 1 :])
    contract, problems = find(folder, ids=ids)
    assert set(problems) == {tokens.BOS_BY_BOTH, tokens.LETTER_FORMS} and contract.passed


def test_ids_that_transformers_does_not_give_are_a_warning(tmp_path):
    reading = LibraryReading("9.8.7", error="ValueError: no such class.")
    problem = only(write(tmp_path), tokens.LIBRARY_FAILS, reading)
    assert str(problem) == "transformers 9.8.7 gives no ids: ValueError: no such class"
    contract, _ = find(tmp_path, reading)
    assert not contract.passed


def test_a_normalizer_of_unicode_loses_nothing(tmp_path):
    folder = edit(
        write(tmp_path), normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    )
    contract, problems = find(folder)
    assert set(problems) == {tokens.BOS_BY_BOTH} and contract.passed
    shown = {probe["name"]: probe["round_trip"] for probe in contract.to_dict()["probes"]}
    assert shown.pop("composed letters") == "normalized" and set(shown.values()) == {"exact"}


def test_another_normalizer_is_a_note_that_names_the_probes(tmp_path):
    folder = edit(write(tmp_path), normalizer={"type": "Lowercase"})
    problem = only(folder, tokens.NORMALIZED_TEXT)
    assert "changes 4 of 10 probes (English, " in problem and "Chinese" not in problem


def test_a_text_that_is_lost_is_an_error(tmp_path):
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    both = {"type": "Sequence", "pretokenizers": [split, {**level, "use_regex": True}]}
    problem = only(edit(write(tmp_path), pre_tokenizer=both), tokens.LOST_TEXT)
    assert "does not give back 9 of 10 probes (English, code, " in problem
    assert "Thequickbrown" in problem.got and "The quick brown" in problem.expected


def test_a_space_that_the_pre_tokenizer_adds_loses_nothing(tmp_path):
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    contract, problems = find(edit(write(tmp_path), pre_tokenizer=level))
    assert set(problems) == {tokens.BOS_BY_BOTH} and contract.passed


@pytest.mark.parametrize("place", ["tokenizer.json", "the chat template"])
def test_two_bos_are_an_error(tmp_path, place):
    if place == "tokenizer.json":
        backend = build_backend()
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{BOS} {BOS} $A", special_tokens=[(BOS, BOS_ID)]
        )
        folder = write(tmp_path, backend=backend)
    else:
        folder = write(
            tmp_path, config=tokenizer_config(chat_template="{{bos_token}}" + R1_TEMPLATE)
        )
    problem = only(folder, tokens.DOUBLE_BOS)
    assert str(problem) == (
        f"{place} puts 2 BOS tokens (id {BOS_ID}) in front of a prompt, expected 1"
    )
    where = "tokenizer.json" if place == "tokenizer.json" else "tokenizer_config.json"
    assert problem.where == where and not find(folder)[0].passed


def test_a_conversation_without_bos_is_a_warning(tmp_path):
    template = R1_TEMPLATE.replace("{{bos_token}}", "")
    folder = write(tmp_path, config=tokenizer_config(chat_template=template))
    assert only(folder, tokens.CHAT_WITHOUT_BOS).rule.severity == "warning"


def test_other_special_tokens_around_a_text_are_a_warning(tmp_path):
    sound = agreeing(write(tmp_path))
    problem = only(tmp_path, tokens.OTHER_OPENING, opened=sound.ids)
    assert problem.expected.startswith(f"[{BOS_ID}, ") and str(BOS_ID) not in problem.got


@pytest.mark.parametrize("name", ["truncation", "padding"])
def test_settings_of_a_calibration_run_are_a_warning(tmp_path, name):
    backend = build_backend()
    if name == "truncation":
        backend.enable_truncation(2048)
    else:
        backend.enable_padding()
    problem = only(write(tmp_path, backend=backend), tokens.SAVED_SETTINGS)
    assert problem.where == f"tokenizer.json: {name}"
    assert name == "padding" or "2048" in problem.got


# ---- chat template -----------------------------------------------------------------------------


def test_a_template_that_fails_is_an_error(tmp_path):
    folder = write(tmp_path, config=tokenizer_config(chat_template="{{ bos_token }}{{ x.y.z }}"))
    contract, problems = find(folder)
    assert set(problems) == {tokens.TEMPLATE_FAILS} and not contract.passed
    assert "cannot render a conversation (line 1)" in problems[tokens.TEMPLATE_FAILS]


def test_a_template_that_does_not_open_the_answer_is_a_warning(tmp_path):
    template = CHATML.partition("{% if add")[0]
    config = tokenizer_config(chat_template=template, add_bos_token=False)
    assert only(write(tmp_path, config=config), tokens.NO_GENERATION_PROMPT)


def test_a_template_that_always_opens_the_answer_is_sound(tmp_path):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} "
        "[/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    folder = write(tmp_path, config=tokenizer_config(chat_template=template))
    assert set(find(folder)[1]) == {tokens.BOS_BY_BOTH}


def test_another_conversation_is_an_error(tmp_path):
    sound = agreeing(write(tmp_path))
    problem = only(tmp_path, tokens.CHAT_DIFFERS, chat=sound.chat.replace("3 + 3", "4 + 3"))
    assert problem.got.startswith("'4 + 3?") and problem.expected.startswith("'3 + 3?")


def test_a_template_that_transformers_cannot_use_is_a_warning(tmp_path):
    write(tmp_path)
    changes = {"chat": None, "chat_error": "ValueError: no template."}
    problem = only(tmp_path, tokens.LIBRARY_CHAT_FAILS, **changes)
    assert str(problem) == (
        "transformers 9.8.7 cannot use the chat template: ValueError: no template"
    )


def test_without_a_template_nothing_is_said_of_what_it_writes(tmp_path):
    contract, problems = find(write(tmp_path, config=tokenizer_config(chat_template=None)))
    assert set(problems) == {NO_CHAT_TEMPLATE} and contract.chat is None and contract.passed


# ---- files -------------------------------------------------------------------------------------


def test_a_missing_and_a_damaged_tokenizer_are_one_problem(tmp_path):
    write(tmp_path)
    config = parse_config(build_config(), where="config")
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    found = check_tokens(tmp_path, config, finished(LibraryReading()))
    assert [problem.rule for problem in found.problems] == [tokens.TOKENIZER_UNUSABLE]
    (tmp_path / "tokenizer.json").unlink()
    found = check_tokens(tmp_path, config, finished(LibraryReading()))
    assert [problem.rule for problem in found.problems] == [NO_TOKENIZER]
    assert found.contract is None


def test_what_had_to_be_decided_is_a_note(tmp_path):
    folder = write(tmp_path, config=tokenizer_config(pad_token="<pad>"))
    problem = only(folder, tokens.SETTLED)
    assert "'<pad>'" in problem and problem.rule.severity == "note"


def test_the_contract_is_plain_values(tmp_path):
    contract, _ = find(write(tmp_path))
    values = json.loads(json.dumps(contract.to_dict()))
    assert values["passed"] is True and values["transformers_version"] == "9.8.7"
    assert [probe["name"] for probe in values["probes"]] == [name for name, _ in PROBES]
    assert values["bos"] == {
        "id": BOS_ID,
        "begins_text": True,
        "in_front_of_text": 1,
        "in_chat": 1,
    }
    assert values["chat"]["ids"][0] == BOS_ID


def test_the_template_of_r1_0528_drops_the_thinking_without_a_finding(tmp_path):
    config = tokenizer_config(chat_template=R1_0528_TEMPLATE)
    contract, problems = find(write(tmp_path, config=config))
    assert "Two and two" not in contract.chat.text and set(problems) == {tokens.BOS_BY_BOTH}

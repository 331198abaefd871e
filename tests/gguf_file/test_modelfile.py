"""The Modelfile: Ollama's template from what the chat template writes."""

import pytest
from checkpoint_builders import build_config, write_json
from token_fixtures import train_backend
from tokenizer_builders import BOS, EOS, R1_TEMPLATE, tokenizer_config, write_tokenizer
from tokenizers import AddedToken

from vacc_deploy.gguf_file.modelfile import write_modelfile
from vacc_deploy.gguf_file.tokens import read_tokens
from vacc_deploy.models.parse import parse_config

SYSTEM_LINE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
)
R1 = R1_TEMPLATE.replace("{{bos_token}}", "{{bos_token}}" + SYSTEM_LINE)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def modelfile(tmp_path, template, ends=(), generation=None, **changes):
    backend = train_backend(300)
    backend.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    write_tokenizer(tmp_path, backend, tokenizer_config(chat_template=template, **changes))
    config = build_config(vocab_size=310)
    write_json(tmp_path / "config.json", config)
    tokens = read_tokens(tmp_path, parse_config(config, where="c"))
    return write_modelfile("a-Q8_0.gguf", tokens, ends, generation or {})


def test_r1_literally_with_its_makers_sampling(tmp_path):
    template = R1.replace("{{'<｜Assistant｜>'}}", "{{'<｜Assistant｜><think>\\n'}}")
    assert modelfile(tmp_path, template, ends=[301, 301]) == (
        "# To change anything, copy this file first (cp Modelfile MyModelfile): vacc-deploy "
        "compares it with what it wrote.\n"
        "FROM ./a-Q8_0.gguf\n"
        'TEMPLATE """{{ if .System }}{{ .System }}{{ end }}{{ range $i, $_ := .Messages }}'
        '{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ if eq .Role "user" }}<｜User｜>'
        '{{ .Content }}{{ else if eq .Role "assistant" }}<｜Assistant｜>{{ .Content }}'
        "{{ if not $last }}<｜end▁of▁sentence｜>{{ end }}{{ end }}"
        '{{ if and $last (ne .Role "assistant") }}<｜Assistant｜><think>\n{{ end }}{{ end }}"""\n'
        "PARAMETER temperature 0.6\n"
        "PARAMETER top_p 0.95\n"
        'PARAMETER stop "<｜end▁of▁sentence｜>"\n'
    )


def test_what_the_checkpoint_states_counts_before_the_default(tmp_path):
    stated = {"temperature": 1, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
    lines = modelfile(tmp_path, R1, generation=stated).splitlines()
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        "PARAMETER temperature 1",
        "PARAMETER top_p 0.95",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1.05",
    ]


def test_numbers_have_all_of_their_digits(tmp_path):
    stated = {"temperature": 0.3333333333, "top_k": 5_000_000, "min_p": 1e-7, "top_p": True}
    lines = modelfile(tmp_path, CHATML, generation=stated).splitlines()
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        "PARAMETER temperature 0.3333333333",
        "PARAMETER min_p 1e-07",
        "PARAMETER top_k 5000000",
    ]
    lines = modelfile(tmp_path, CHATML, generation={"top_k": 20.5}).splitlines()
    assert not [line for line in lines if line.startswith("PARAMETER")]


def test_chatml_with_the_system_prompt_that_the_template_puts_there(tmp_path):
    text = modelfile(tmp_path, CHATML, add_bos_token=False)
    assert '"""{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}' in text
    assert text.endswith('<|im_start|>assistant\n{{ end }}{{ end }}"""\nSYSTEM """Be kind."""\n')


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("<|im_end|>' }}", "<|im_stop|>' }}"),
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}",
    ],
    ids=["other mark", "no marks", "no system prompt"],
)
def test_turns_in_no_known_form_get_no_template(tmp_path, template):
    text = modelfile(tmp_path, template)
    assert text.splitlines()[2] == (
        "# No TEMPLATE: the turns of this chat template are in no form that is known here. Ollama "
        "takes the nearest of its own, or the bare prompt."
    )
    assert "\nTEMPLATE" not in text and text.count("\n") == 3


@pytest.mark.parametrize(
    ("template", "state"),
    [(None, "is there"), ("{% if %}", "can be used"), ("{{ 1 / 0 }}", "can be used")],
)
def test_without_a_template_it_says_so(tmp_path, template, state):
    text = modelfile(tmp_path, template)
    assert text.splitlines()[2:] == [
        f"# No TEMPLATE: no chat template {state}. Ollama takes the bare prompt."
    ]

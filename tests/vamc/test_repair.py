"""The safe repairs of a compile file."""

import pytest
import yaml
from checkpoint_builders import write_checkpoint

from vacc_deploy.errors import CompileFileError
from vacc_deploy.outputs.seal import is_sealed_text
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.vamc.compile_file import FILE_HEAD, make_compile_file
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.repair import fix_compile_file
from vacc_deploy.vamc.rules import find_problems
from vacc_deploy.vamc.target import find_target


def text_of(model="Distill-Qwen-7B", **options):
    return make_compile_file(
        find_target(model, options.get("dtype")), CompileOptions(**options)
    ).text


def fix(path, text):
    """Return the content after the repairs, and what was changed."""
    path.write_text(text, "utf-8")
    fixed, applied = fix_compile_file(path)
    assert path.read_text("utf-8") == text
    assert fixed.startswith(FILE_HEAD) and is_sealed_text(fixed.encode())
    again = path.with_name("again.yaml")
    again.write_text(fixed)
    assert fix_compile_file(again)[1] == []
    return yaml.safe_load(fixed), applied


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.yaml"


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_a_sound_file_keeps_its_content(path, dtype):
    text = text_of(dtype=dtype)
    assert fix(path, text) == (yaml.safe_load(text), [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[[1024], [2048]]", "[[1010], [2033]]"),
        ("tp4-1024-2048", "tp2-1024-2048"),
        ("-fp16-", "-int8-"),
        ("  merge_params: true\n", ""),
        ("    b2s: true\n", ""),
        ("  type: tvm_vacc\n", ""),
        ("  type: huggingface\n", ""),
        ("    data_type: 0\n    gather_data_vccl_dsp_enable: true\n", "    data_type: 0\n"),
        ("workspace:\n  path: ./vacc_deploy\n  workers: 4\n", ""),
        ("    model_arch: vacc\n", "    model_arch: vacc\n  quantize: {type: w8a16_gptq}\n"),
    ],
)
def test_one_safe_repair_makes_the_file_sound(path, old, new):
    text = text_of(dtype="fp16")
    assert old in text
    broken = text.replace(old, new)
    assert find_problems(yaml.safe_load(broken))
    content, applied = fix(path, broken)
    assert content == yaml.safe_load(text) and applied
    assert list(content) == ["name", "frontend", "backend", "workspace"]


def test_int8_gets_its_method_and_fp16_loses_it(path):
    text = text_of(dtype="int8", calibration=("c4", "allenai/c4"))
    without = text.replace("  quantize:\n    type: w8a16_gptq\n", "")
    assert fix(path, without)[0] == yaml.safe_load(text)
    content, applied = fix(path, text.replace("dtype: int8", "dtype: fp16"))
    assert "quantize" not in content["frontend"] and "dataset" not in content
    assert content["name"].startswith("DeepSeek-R1-Distill-Qwen-7B-fp16-")
    assert len(applied) == 3 and find_problems(content) == []


def test_align_qkv_is_set_where_the_heads_need_it(path):
    text = text_of("Distill-Qwen-1.5B", dtype="fp16")
    without = text.replace("    align_qkv: true\n", "")
    content, applied = fix(path, without)
    assert content == yaml.safe_load(text)
    assert applied == [
        "frontend.model_kwargs.align_qkv: is true, since tp does not divide the heads"
    ]


def test_checkpoint_tp_and_dtype_are_never_touched(path):
    text = text_of(dtype="fp16").replace("tp: 4", "tp: 5").replace("dtype: fp16", "dtype: bf16")
    content, _ = fix(path, text)
    assert content["frontend"]["model_kwargs"]["tp"] == 5
    assert content["backend"]["dtype"] == "bf16"
    # Of a dtype that is none no name is made.
    assert content["name"] == "DeepSeek-R1-Distill-Qwen-7B-fp16-tp4-1024-2048"
    content, _ = fix(path, text_of(dtype="fp16").replace("  checkpoint: ./", "  checkpoint: /no/"))
    assert content["frontend"]["checkpoint"] == "/no/DeepSeek-R1-Distill-Qwen-7B-vacc"
    assert len(find_problems(fix(path, text.replace("    tp: 5\n", ""))[0])) == 2


def test_what_is_not_safe_stays(path):
    text = text_of(dtype="fp16").replace("[[1024], [2048]]", "[[4096], [-16]]")
    content, _ = fix(path, text.replace("backend:\n", "backend:\n  zzz: 1\n"))
    assert content["frontend"]["shape"]["input_ids"] == [[4096], [-16]]
    assert content["backend"]["zzz"] == 1
    long = text_of(dtype="fp16").replace("[[1024], [2048]]", "[[1024], [131080]]")
    assert fix(path, long)[0]["frontend"]["shape"]["input_ids"] == [[1024], [131080]]


def test_a_misspelt_key_keeps_its_value_and_gets_no_second_one(path):
    content, applied = fix(path, text_of(dtype="fp16").replace("b2s: true", "bs2: false"))
    assert content["frontend"]["model_kwargs"]["bs2"] is False and applied == []
    assert "b2s" not in content["frontend"]["model_kwargs"]
    content, applied = fix(path, text_of(dtype="fp16").replace("workspace:", "worksapce:"))
    assert "workspace" not in content and applied == []


def test_codes_are_never_quantized_again(path, tmp_path):
    source = write_checkpoint(tmp_path / "source")
    prepared = prepare(weights=source, output=tmp_path / "p", link_mode="copy").output_dir
    options = QuantizeOptions("rtn", formats=("int8",))
    codes = quantize(prepared, options=options, output=tmp_path / "c").output_dir
    options = CompileOptions(tensor_parallel_size=2, experimental=True)
    text = make_compile_file(find_target(str(codes)), options).text
    assert fix(path, text) == (yaml.safe_load(text), [])
    # Nor where only the name of a directory tells that it holds codes.
    away = text.replace(str(codes), "/no/Tiny-vacc-int8-codes")
    assert fix(path, away)[0] == yaml.safe_load(away)


def test_the_head_says_what_was_changed_and_that_comments_are_lost(path):
    path.write_text(
        "# mine\n" + text_of("Distill-Qwen-32B", dtype="fp16").replace("[1024]", "[1000]")
    )
    text, (lengths, *_) = fix_compile_file(path)
    assert (
        lengths
        == "frontend.shape.input_ids: was [1000, 2048], is [1008, 2048], the next multiples of 16"
    )
    head = " ".join(text.partition("\nname:")[0].replace("#", " ").split())
    assert "comments of the file before are not in this one" in head and lengths in head
    assert "export VACC_STACK_SIZE=256" in head and "# mine" not in text


@pytest.mark.parametrize("text", ["frontend: [1]\n", "backend: {compile: 3}\n", "name: {}\n"])
def test_a_file_without_shape_does_no_harm(path, text):
    fix(path, text)


@pytest.mark.parametrize(
    "text", ["- 1\n", "''", "frontend: {model_kwargs: {build_visual: true}}\n"]
)
def test_a_file_of_no_language_model_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(CompileFileError, match=r"a\.yaml cannot be mended: "):
        fix_compile_file(path)


def test_what_cannot_be_read_is_refused(path):
    path.write_text("a: &x 1\n")
    with pytest.raises(CompileFileError, match="anchor"):
        fix_compile_file(path)

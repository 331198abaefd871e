"""The checks of dense Qwen3 and of yarn rotary scaling, which few versions of transformers have.

Where the library has no reference of its own, the numbers are those that a newer one computed when
the directories were written. Python 3.8 syntax: this file runs wherever the source files do.
"""

from matrix_support import (
    GREEDY,
    VERSION,
    NotApplicable,
    check,
    left_padded,
    load,
    load_stock,
    make_ids,
    require_close,
    require_exact_state,
    require_tokens,
    save_and_reload,
    split_past,
    stored,
)
from transformers import AutoConfig, DynamicCache

FIRST_QWEN3 = (4, 51)
FIRST_YARN = (4, 45)  # before, the library's Qwen2 does not read rope_scaling
FIRST_YARN_LENGTH = (4, 51)  # before, it takes max_position_embeddings for the trained length


def require_stored_numbers(root, name):
    """Ours equals what a newer library computed: prefill, decode, both caches, int8."""
    folder, ids = root / (name + "-prepared"), make_ids()
    expected = stored(root / "expected")[name]
    own = load(folder, fields={"insert_slice": False})
    require_exact_state(own, folder)
    require_close(f"{name} prefill", own(ids, use_cache=False).logits, expected)
    _, last = split_past(own, ids)
    require_close(f"{name} decode", last.logits, expected[:, 20:])
    cache = DynamicCache()
    _, last = split_past(own, ids, past_key_values=cache)
    assert last.past_key_values is cache, "the cache is not the one given"
    require_close(f"{name} decode with DynamicCache", last.logits, expected[:, 20:])
    int8 = load(root / (name + "-int8"), fields={"insert_slice": False})
    require_exact_state(int8, root / (name + "-int8"))
    logits = int8(ids).logits
    require_close(f"{name} int8", logits, own.quantize(8)(ids).logits)
    _, again = save_and_reload(own)
    assert again.config.model_type == own.config.model_type, again.config.model_type
    require_close(f"{name} saved", again(ids).logits, logits)


def require_stock_numbers(root, name, **options):
    """Ours equals this version's own: logits, left padding, greedy tokens of a batch."""
    ids, (padded, mask) = make_ids(), left_padded()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    stock = load_stock(root / (name + "-prepared"), **options)
    own = load(root / (name + "-prepared"), fields={"insert_slice": False})
    require_close(f"{name} logits", own(ids).logits, stock(ids).logits)
    inputs = {"attention_mask": mask, "position_ids": positions}
    actual, expected = own(padded, **inputs).logits, stock(padded, **inputs).logits
    require_close(f"{name} left padding", actual[mask.bool()], expected[mask.bool()])
    made = own.generate(padded, attention_mask=mask, **GREEDY)
    require_tokens(name, made, stock.generate(padded, attention_mask=mask, **GREEDY))


@check("Qwen3")
def check_qwen3(root):
    """Dense Qwen3 in the same files, in versions without Qwen3 too: weights exact, tied or not,
    `model_type` kept, logits equal to 1e-5 what a newer transformers computed (with tuples and
    `DynamicCache`), int8 and saving.
    """
    require_stored_numbers(root, "qwen3")
    require_stored_numbers(root, "qwen3-yarn")


@check("stock Qwen3")
def check_stock_qwen3(root):
    """Logits, left padding and greedy tokens of this version's own Qwen3."""
    if VERSION < FIRST_QWEN3:
        raise NotApplicable("transformers before 4.51 has no Qwen3")
    require_stock_numbers(root, "qwen3")


@check("yarn")
def check_yarn(root):
    """Qwen2 with static yarn, checked as in the column Qwen3, whose tied model has yarn too."""
    require_stored_numbers(root, "qwen2-yarn")


@check("stock yarn")
def check_stock_yarn(root):
    """Qwen2 and, from 4.51, Qwen3 with yarn equal this version's own. Up to 4.50 that version's own
    takes `max_position_embeddings` for the trained length, and is given that.
    """
    if VERSION < FIRST_YARN:
        raise NotApplicable("the Qwen2 of transformers before 4.45 does not read rope_scaling")
    if VERSION >= FIRST_YARN_LENGTH:
        require_stock_numbers(root, "qwen2-yarn")
        require_stock_numbers(root, "qwen3-yarn")
        return
    config = AutoConfig.from_pretrained(root / "qwen2-yarn-prepared")
    config.max_position_embeddings = config.rope_scaling["original_max_position_embeddings"]
    require_stock_numbers(root, "qwen2-yarn", config=config)

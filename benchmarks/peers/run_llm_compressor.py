"""Run llm-compressor on given token ids: ``gptq`` (static act-order) or ``rtn``, W8A16 per channel.

python run_llm_compressor.py CHECKPOINT IDS.npy OUTPUT gptq|rtn
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from peer_output import Run, load_model, write_stock


def quantize(model, run: Run):  # noqa: ANN001, ANN201 - transformers and datasets objects
    """Quantize every linear of the decoder layers in place."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    # Spelt out: the preset W8A16 is in groups of 128 inputs in this release, not per channel.
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    scheme = {"config_groups": groups, "ignore": ["lm_head"]}
    if run.method == "rtn":
        oneshot(model=model, recipe=QuantizationModifier(**scheme))
        return
    rows = Dataset.from_dict(
        {"input_ids": run.rows.tolist(), "attention_mask": (run.rows * 0 + 1).tolist()}
    )
    oneshot(
        model=model,
        dataset=rows,
        recipe=GPTQModifier(actorder="static", **scheme),
        max_seq_length=run.rows.shape[1],
        num_calibration_samples=len(run.rows),
        shuffle_calibration_samples=False,
    )


def read_weights(own: Path) -> dict:
    """Return the float32 weights that the saved codes and scales stand for, by name."""
    import torch
    from safetensors.torch import load_file

    weights = {}
    for path in sorted(own.glob("*.safetensors")):
        tensors = load_file(path)
        for name in [n for n in tensors if n.endswith(".weight_packed")]:
            base = name.removesuffix("_packed")
            out_features, in_features = tensors[f"{base}_shape"].tolist()
            # Four codes in an int32, the first in the lowest byte, each with 128 added.
            codes = tensors[name].contiguous().view(torch.uint8)[:, :in_features].float() - 128
            scale = tensors[f"{base}_scale"].float().reshape(out_features, 1)
            weights[base] = codes * scale
    return weights


def main() -> None:
    """Quantize, save, report, export."""
    run = Run("run_llm_compressor.py")
    with run.step("import"):
        import llmcompressor  # noqa: F401 - timed
        import torch
        import transformers  # noqa: F401 - timed
    with run.step("load"):
        model = load_model(run.checkpoint)
    with run.step("quantize"):
        quantize(model, run)
    own = run.output / "own"
    with run.step("save"):
        model.save_pretrained(own, save_compressed=True)
    version = metadata.version("llmcompressor")
    run.finish(name=f"llm-compressor {version} {run.method}", torch=torch.__version__)
    write_stock(run.checkpoint, run.output / "stock", read_weights(own))


if __name__ == "__main__":
    main()

"""Run torchao's int8 weight-only rounding, per row. The token ids are not used.

python run_torchao.py CHECKPOINT IDS.npy OUTPUT rtn
"""

from __future__ import annotations

from importlib import metadata

from peer_output import Run, load_model, write_stock


def main() -> None:
    """Quantize, save, report, export."""
    run = Run("run_torchao.py")
    with run.step("import"):
        import torch
        import transformers  # noqa: F401 - timed
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    with run.step("load"):
        model = load_model(run.checkpoint)
    with run.step("quantize"):
        quantize_(model.model.layers, Int8WeightOnlyConfig())
    own = run.output / "own"
    with run.step("save"):
        own.mkdir(parents=True)
        torch.save(model.state_dict(), own / "model.pt")
    run.finish(name=f"torchao {metadata.version('torchao')} rtn", torch=torch.__version__)
    weights = {}
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            codes, scale = module.weight.qdata, module.weight.scale
            weights[f"model.layers.{name}.weight"] = codes.float() * scale.float().reshape(-1, 1)
    write_stock(run.checkpoint, run.output / "stock", weights)


if __name__ == "__main__":
    main()

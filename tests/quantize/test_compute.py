"""Where and in which precision to compute: the choices, and what is refused."""

import pytest
import torch

from vacc_deploy import system
from vacc_deploy.errors import UsageError
from vacc_deploy.quantize.compute import choose_compute


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Make the machine report these processor flags; None for a system without the file."""

    class FakePath:
        flags = ""

        def __new__(cls, name):
            assert name == "/proc/cpuinfo"
            path = tmp_path / "cpuinfo"
            path.unlink(missing_ok=True)
            if cls.flags is not None:
                path.write_text(f"processor\t: 0\nflags\t\t: {cls.flags}\n\nflags\t\t: other\n")
            return path

    monkeypatch.setattr(system, "Path", FakePath)
    return FakePath


@pytest.fixture
def gpus(monkeypatch):
    """Make torch see some CUDA devices."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")

    return see


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu sse avx512_bf16 avx", torch.bfloat16),
        ("amx_bf16", torch.bfloat16),
        ("fpu avx512f avx2", torch.float32),
        ("not_avx512_bf16 amx_bf16x", torch.float32),
        ("", torch.float32),
        (None, torch.float32),
    ],
)
def test_choose_compute_auto_on_a_cpu_is_bfloat16_only_where_there_are_units(
    processor, flags, dtype
):
    processor.flags = flags
    for chosen in (choose_compute("cpu"), choose_compute("cpu", "auto")):
        assert (chosen.device, chosen.dtype) == (torch.device("cpu"), dtype)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("flags", ["", "amx_bf16"])
def test_choose_compute_takes_the_dtype_asked_for(processor, gpus, name, flags):
    processor.flags = flags
    gpus(1)
    for device in ("cpu", "cuda"):
        assert choose_compute(device, name).dtype is getattr(torch, name)


def test_choose_compute_on_cuda_waits_for_its_main_stream(gpus, monkeypatch):
    gpus(2)
    waited = []

    class Stream:
        def __init__(self, device):
            self.device = device

        def synchronize(self):
            waited.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name, index in (("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)):
        chosen = choose_compute(name)
        assert (chosen.device, chosen.dtype) == (torch.device("cuda", index), torch.bfloat16)
        assert chosen.describe() == f"GPU {index}"
        chosen.synchronize()
    assert waited == [torch.device("cuda", index) for index in (0, 0, 1)]
    assert chosen.batch_tokens > choose_compute("cpu").batch_tokens


def test_compute_on_a_cpu_waits_for_nothing():
    chosen = choose_compute("cpu")
    assert chosen.synchronize is None and chosen.describe() == "cpu"
    assert chosen.batch_tokens == 2048 and chosen.kept_bytes > 0


@pytest.mark.parametrize(
    "name", ["gpu", "cpu:0", "cuda:x", "cuda:-1", "cuda:", "cuda:٣", "", "CPU"]
)
def test_choose_compute_unknown_device_is_refused(gpus, name):
    gpus(4)
    with pytest.raises(UsageError) as caught:
        choose_compute(name)
    assert str(caught.value) == f"--device is {name!r}, expected cpu, cuda or cuda:N."


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_choose_compute_device_that_is_not_there_is_refused(gpus, name, count):
    gpus(count)
    with pytest.raises(UsageError) as caught:
        choose_compute(name)
    assert str(caught.value) == (
        f"--device {name}: torch {torch.__version__} sees {count} CUDA devices. Use --device cpu, "
        "or install a CUDA build of torch and the driver."
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float16", "", "bf16"])
def test_choose_compute_unknown_dtype_is_refused(device, dtype):
    with pytest.raises(UsageError) as caught:
        choose_compute(device, dtype)
    assert str(caught.value) == (
        f"The compute dtype is {dtype!r}, expected auto, float32 or bfloat16."
    )

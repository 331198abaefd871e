"""Where and in which precision to compute: the choices, and what is refused."""

import pytest
import torch

from vacc_deploy.errors import UsageError
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.system import has_bfloat16_units, processor_name


@pytest.fixture
def gpus(monkeypatch):
    """Make torch see some CUDA devices."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")

    return see


@pytest.mark.parametrize(
    ("flags", "has_units"),
    [
        ("fpu sse avx512_bf16 avx", True),
        ("amx_bf16", True),
        ("fpu avx512f avx2", False),
        ("not_avx512_bf16 amx_bf16x", False),
        ("", False),
    ],
)
def test_the_processor_says_whether_it_has_bfloat16_units(tmp_path, flags, has_units):
    lines = f"processor\t: 0\nmodel name\t: Abacus 3\nflags\t\t: {flags}\n\nflags\t\t: amx_bf16\n"
    (tmp_path / "cpuinfo").write_text(lines)
    assert has_bfloat16_units(tmp_path) is has_units
    assert processor_name(tmp_path) == "Abacus 3"


def test_a_system_without_cpuinfo_has_no_bfloat16_units(tmp_path):
    assert not has_bfloat16_units(tmp_path)
    assert processor_name(tmp_path)


@pytest.mark.parametrize(("is_fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_choose_compute_auto_on_a_cpu_is_bfloat16_only_where_it_is_fast(is_fast, dtype):
    chosen = choose_compute("cpu", is_bfloat16_fast=lambda: is_fast)
    assert (chosen.device, chosen.dtype) == (torch.device("cpu"), dtype)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_choose_compute_takes_the_dtype_asked_for(gpus, name):
    gpus(1)
    for device in ("cpu", "cuda"):
        for is_fast in (True, False):
            chosen = choose_compute(device, name, is_bfloat16_fast=lambda fast=is_fast: fast)
            assert chosen.dtype is getattr(torch, name)


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

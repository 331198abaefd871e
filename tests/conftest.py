"""No test reads or writes the user's home, and none reaches beyond this machine."""

import shutil
import signal
import tempfile

import pytest


def pytest_configure(config):
    # nohup and a shell's background leave signals ignored, which processes started here inherit.
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(signum) is signal.SIG_IGN:
            usual = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, usual)
    # Before any test module is imported: huggingface_hub and transformers read these variables at
    # their import, and remote code is cached below HF_HOME.
    config.hf_home = tempfile.mkdtemp(prefix="vacc-deploy-tests-")
    config.environment = pytest.MonkeyPatch()
    config.environment.setenv("HF_HOME", config.hf_home)
    config.environment.setenv("HF_HUB_OFFLINE", "1")
    config.environment.setenv("MODELSCOPE_CACHE", f"{config.hf_home}/modelscope")
    for name in ("HF_ENDPOINT", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        config.environment.delenv(name, raising=False)


def pytest_unconfigure(config):
    config.environment.undo()
    shutil.rmtree(config.hf_home, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The same sums on every machine; two test workers share what may be two cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""Every failed download is one message with its cause and its cure."""

import errno
import json
import os
import ssl
import types

import pytest
from click.testing import CliRunner
from huggingface_hub.errors import GatedRepoError

from vacc_deploy.cli import cli
from vacc_deploy.lookup import hub
from vacc_deploy.lookup.transport import explain_failure

ENDPOINT = "https://huggingface.co"
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")
HTTPX = (
    "Using SOCKS proxy, but the 'socksio' package is not installed. Make sure to install httpx "
    "using `pip install httpx[socks]`."
)
NO_SOCKS = "a SOCKS proxy, and the Python package for such proxies is missing"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    names = (*PROXIES, "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    for name in names:
        monkeypatch.delenv(name, raising=False)


def caused(outer, inner):
    outer.__cause__ = inner
    return outer


class Answer(OSError):
    """What the libraries raise for an answer of the hub: it has the response."""

    def __init__(self, code):
        super().__init__(f"{code} Error for url: https://x\nRequest ID: 1")
        self.response = type("Response", (), {"status_code": code})


@pytest.mark.parametrize("name", PROXIES)
def test_a_socks_proxy_without_its_package(monkeypatch, name):
    monkeypatch.setenv(name, "socks5://user:secret@127.0.0.1:9")
    reason, cure = explain_failure(ImportError(HTTPX), ENDPOINT)
    assert reason == f"{name} names {NO_SOCKS}"
    assert cure == f"Run one of these:\n  pip install 'httpx[socks]'\n  unset {name}"


def test_several_variables_and_the_other_library(monkeypatch):
    for name in ("ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "socks5h://x:1")
    monkeypatch.setenv("HTTP_PROXY", "http://x:1")
    reason, cure = explain_failure(ValueError("Missing dependencies for SOCKS support."), ENDPOINT)
    assert reason == f"ALL_PROXY and https_proxy name {NO_SOCKS}"
    assert cure.endswith("\n  pip install 'requests[socks]'\n  unset ALL_PROXY https_proxy")


@pytest.mark.parametrize(
    "err", [ValueError("Unknown scheme for proxy URL"), OSError(111, "Connection refused")]
)
def test_what_fails_behind_a_proxy_names_its_variable_and_not_its_password(monkeypatch, err):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://user:secret@x")
    reason, cure = explain_failure(err, ENDPOINT)
    assert reason == str(err)
    assert cure == (
        "The download goes through the proxy in HTTPS_PROXY: check it, or run: unset HTTPS_PROXY"
    )


@pytest.mark.parametrize("endpoint", ["hf-mirror.com", "https:", "ftp://x", "https://", "//x"])
def test_an_endpoint_that_is_no_address(endpoint):
    reason, cure = explain_failure(ValueError("x"), endpoint)
    assert reason == "HF_ENDPOINT is not the address of a hub"
    assert cure.startswith("Set HF_ENDPOINT to an address that begins with https://")


@pytest.mark.parametrize(
    "err",
    [
        OSError(errno.ENOSPC, "No space left on device", "/c/blobs/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Data processing error: No space left on device (os error 28)"),
    ],
)
def test_a_full_cache(err):
    reason, cure = explain_failure(caused(RuntimeError("x"), err), ENDPOINT)
    assert reason == "the disk of the cache is full"
    assert "set HF_HOME to a directory on another disk" in cure


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written(number):
    reason, cure = explain_failure(OSError(number, os.strerror(number), "/c/hub"), ENDPOINT)
    assert reason == f"the cache cannot be written: {os.strerror(number)}: /c/hub"
    assert cure == "Set HF_HOME to a directory that you may write to."


def test_certificates(monkeypatch):
    err = ssl.SSLError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in chain")
    reason, cure = explain_failure(caused(OSError("x"), err), ENDPOINT)
    assert "CERTIFICATE_VERIFY_FAILED" in reason and "set SSL_CERT_FILE to a file" in cure
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such")
    reason, cure = explain_failure(FileNotFoundError(2, "No such file or directory"), ENDPOINT)
    assert reason == "SSL_CERT_FILE is /no/such, which does not exist"
    assert cure == "Correct it, or run: unset SSL_CERT_FILE"


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (401, "Set HF_TOKEN to a token that may read this repository."),
        (403, "Set HF_TOKEN to a token that may read this repository."),
        (404, ""),
        (407, "Give the proxy in HTTPS_PROXY its name and password."),
        (429, "It is asked too often. Wait some minutes, or set HF_TOKEN."),
        (500, "Try again later, or use another mirror."),
        (503, "Try again later, or use another mirror."),
    ],
)
def test_answers_of_the_hub(monkeypatch, code, cure):
    monkeypatch.setenv("HTTPS_PROXY", "http://x:1")
    err = caused(FileNotFoundError("not found on the disk"), Answer(code))
    assert explain_failure(err, ENDPOINT) == (
        f"it answers {code}: {code} Error for url: https://x",
        cure,
    )


def test_a_repository_that_its_owner_has_closed():
    response = types.SimpleNamespace(status_code=403, headers={}, request=None)
    reason, cure = explain_failure(GatedRepoError("gated", response=response), ENDPOINT)
    assert reason == "its owner has to grant you access"
    assert cure.startswith("Ask for access on the page of the repository.")


def test_a_token_that_is_none():
    err = UnicodeEncodeError("ascii", "汉", 0, 1, "ordinal not in range(128)")
    reason, cure = explain_failure(err, ENDPOINT)
    assert reason == "the access token has characters that no token has"
    assert cure.startswith("Correct HF_TOKEN")


@pytest.mark.parametrize(
    "err",
    [
        ImportError(HTTPX),
        ValueError("Repo id must use alphanumeric chars"),
        TimeoutError("timed out"),
        OSError(-2, "Name or service not known"),
        RuntimeError(""),
        UnicodeDecodeError("ascii", b"x", 0, 1, "y"),
        KeyError("sha"),
        AssertionError(),
        Answer(502),
    ],
    ids=repr,
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_whatever_the_libraries_raise_is_one_message(tmp_path, monkeypatch, err, options):
    def fails(*args, **settings):
        raise err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    result = CliRunner().invoke(cli, ["prepare", "some-one/model", *options])
    assert result.exit_code == 1 and not isinstance(result.exception, type(err))
    assert "some-one/model is not in the Hugging Face cache" in result.stderr
    assert "\n  hf download some-one/model --local-dir model\n" in result.stderr
    if options:
        assert json.loads(result.stdout)["error"]["type"] == "CheckpointError"
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_is_no_failure(monkeypatch):
    def fails(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "_download", fails)
    with pytest.raises(KeyboardInterrupt):
        hub.fetch("some-one/model")


def test_a_mistake_of_our_own_is_no_failed_download(tmp_path, monkeypatch):
    def mistaken(*args, **settings):
        raise TypeError("ours")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **settings: tmp_path)
    monkeypatch.setattr(hub, "find_missing", mistaken)
    with pytest.raises(TypeError, match="ours"):
        hub.fetch("some-one/model")

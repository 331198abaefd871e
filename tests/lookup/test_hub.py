"""The hub's cache and download, against a small hub on 127.0.0.1."""

import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from checkpoint_builders import build_config, write_checkpoint
from texts import ROOT

from vacc_deploy.errors import CheckpointError
from vacc_deploy.lookup import hub

NAME = "DeepSeek-R1-Distill-Tiny"
REPOSITORY = f"deepseek-ai/{NAME}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
# Runs the command line with one more model in the catalogue.
RUN = f"""
import sys
from vacc_deploy.models import catalog
from vacc_deploy.cli import main
class Tiny(catalog.CatalogModel):
    config_values = {build_config()!r}
model = Tiny({NAME!r}, "x/y")
catalog._MODELS += (model,)
catalog._BY_ALIAS.update(dict.fromkeys((alias.lower() for alias in model.aliases), model))
sys.argv[0] = "vacc-deploy"
main()
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """The four requests that a download makes."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        if path in self.server.waiting and with_body:
            self.server.is_asked.set()
            self.server.may_go_on.wait(30)
        if path in self.server.failing and with_body:
            return self.send(500, b"broken", {})
        repository = self.server.repository
        if path == f"/api/models/{repository}/revision/main":
            return self.send_json({"id": repository, "sha": COMMIT, "siblings": []})
        if path == f"/api/models/{repository}/tree/{COMMIT}":
            return self.send_json([self.entry(name) for name in sorted(self.server.files)])
        match = re.fullmatch(rf"/{repository}/resolve/{COMMIT}/(.+)", path)
        if match and match[1] in self.server.files:
            data = self.server.files[match[1]]
            headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            return self.send(200, data, headers, with_body=with_body)
        headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        return self.send(404, b"Repository not found", headers)

    def entry(self, name):
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": etag(data)}

    def send_json(self, values):
        self.send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def send(self, code, data, headers, *, with_body=True):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(data)


def etag(data):
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def server(tmp_path):
    source = write_checkpoint(tmp_path / "origin", shards=2)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {path.name: path.read_bytes() for path in source.iterdir()}
    server.files |= {
        ".gitattributes": b"*.safetensors filter=lfs",
        "LICENSE": b"MIT",
        "figures/benchmark.jpg": b"jpg",
        "onnx/model.safetensors": b"another form",
        "evil.py": b"raise SystemExit(99)",
        "pytorch_model.bin": b"pickle",
    }
    server.requests, server.failing, server.repository = [], set(), REPOSITORY
    server.waiting, server.is_asked, server.may_go_on = set(), threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.may_go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


def run(tmp_path, *args, endpoint="http://127.0.0.1:9", **environment):
    """Run ``vacc-deploy`` with a cache of its own."""
    options = launch(tmp_path, *args, endpoint=endpoint, **environment)
    return subprocess.run(**options, capture_output=True, timeout=60, check=False)


def launch(tmp_path, *args, endpoint, **environment):
    """Return what starts ``vacc-deploy`` with a cache of its own."""
    env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    env |= {"PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", RUN, *map(str, args)]
    return {"args": command, "text": True, "env": env, "cwd": tmp_path}


def at(server):
    return f"http://127.0.0.1:{server.server_port}"


def fetched(server):
    """Return the files whose bytes were sent."""
    prefix = f"/{server.repository}/resolve/{COMMIT}/"
    got = [path for method, path in server.requests if method == "GET" and path.startswith(prefix)]
    return sorted(path.removeprefix(prefix) for path in got)


def test_download_then_cache_without_network(tmp_path, server):
    out = ("--model", "distill-tiny", "--output")
    first = run(tmp_path, "prepare", *out, "a", endpoint=at(server))
    assert first.returncode == 0, first.stderr
    wanted = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    wanted += ["LICENSE", "model.safetensors.index.json", *SHARDS]
    assert fetched(server) == sorted(wanted)
    for name in wanted:
        assert (tmp_path / "a" / name).read_bytes() == server.files[name]
    manifest = json.loads((tmp_path / "a" / "vacc_deploy.json").read_text())
    assert (manifest["source"]["repository"], manifest["source"]["revision"]) == (
        REPOSITORY,
        COMMIT,
    )
    # The second run must not ask the hub again, though the repository holds more than was fetched.
    server.requests.clear()
    again = run(tmp_path, "prepare", *out, "b", endpoint=at(server))
    assert again.returncode == 0, again.stderr
    assert server.requests == []
    offline = run(tmp_path, "prepare", *out, "c", "--dry-run", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout.startswith(f"Would prepare {NAME} in c\n")
    assert (tmp_path / "a" / "config.json").read_bytes() == server.files["config.json"]
    assert (tmp_path / "b" / "vacc_deploy.json").read_bytes() == (
        tmp_path / "a" / "vacc_deploy.json"
    ).read_bytes()


def test_a_broken_download_is_an_error_and_resumes(tmp_path, server):
    server.failing = {f"/{REPOSITORY}/resolve/{COMMIT}/{SHARDS[1]}"}
    broken = run(tmp_path, "prepare", "--model", NAME, endpoint=at(server))
    assert broken.returncode == 1, broken.stderr
    assert (
        f"{REPOSITORY} is not whole in the Hugging Face cache ({tmp_path / 'hf' / 'hub'})"
        in broken.stderr
    )
    assert f"/snapshots/{COMMIT} lacks {SHARDS[1]}.\n" in broken.stderr
    assert "(it answers 500: " in broken.stderr
    assert "Try again later, or use another mirror.\n" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert not (tmp_path / f"{NAME}-vacc").exists()
    server.requests.clear()
    server.failing = set()
    resumed = run(tmp_path, "prepare", "--model", NAME, endpoint=at(server))
    assert resumed.returncode == 0, resumed.stderr
    assert SHARDS[1] in fetched(server)
    assert SHARDS[0] not in fetched(server)
    assert (tmp_path / f"{NAME}-vacc" / SHARDS[1]).read_bytes() == server.files[SHARDS[1]]


ADVICE = (
    "\nOn a machine with network access run one of these:\n"
    f"  hf download {REPOSITORY} --local-dir {NAME}\n"
    f"  modelscope download --model {REPOSITORY} --local_dir {NAME}\n"
    "copy that directory here, then use it:\n"
    f"  vacc-deploy prepare {NAME} --model Distill-Tiny\n"
    "A mirror is set with HF_ENDPOINT.\n"
)


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [({"HF_HUB_OFFLINE": "1"}, "http://127.0.0.1:9"), ({}, "http://127.0.0.1:9")],
    ids=["offline", "unreachable"],
)
def test_without_network_the_error_names_the_command(tmp_path, environment, endpoint):
    result = run(tmp_path, "prepare", "--model", NAME, endpoint=endpoint, **environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"Error: {REPOSITORY} is not in the Hugging Face cache ({tmp_path / 'hf' / 'hub'}) and "
        "cannot be "
        f"downloaded from {endpoint} ("
    )
    assert result.stderr.endswith(ADVICE)
    assert "Traceback" not in result.stderr


def test_a_repository_that_the_endpoint_lacks(tmp_path, server):
    server.files.clear()
    result = run(tmp_path, "prepare", "--model", "Distill-Qwen-7B", endpoint=at(server))
    assert result.returncode == 1
    assert f"cannot be downloaded from {at(server)} (" in result.stderr
    assert "hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-7B --local-dir" in result.stderr


def test_a_dry_run_downloads_nothing(tmp_path, server):
    result = run(tmp_path, "prepare", "--model", NAME, "--dry-run", endpoint=at(server))
    assert result.returncode == 1
    assert result.stderr == (
        f"Error: {REPOSITORY} is not in the Hugging Face cache, and a dry run downloads nothing. "
        "Run it without --dry-run, or give a directory.\n"
    )
    assert server.requests == []


def test_a_full_output_is_refused_before_the_download(tmp_path, server):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    result = run(tmp_path, "prepare", "--model", NAME, "--output", "out", endpoint=at(server))
    assert result.returncode == 1
    assert "Error: out exists and is not empty." in result.stderr
    assert server.requests == []


# ---- any repository, wherever a directory is expected -----------------------------------------

OTHER = "some-one/My.Fine_tune"


def test_any_repository_is_downloaded_and_quantized_into_the_working_directory(tmp_path, server):
    server.repository = OTHER
    result = run(tmp_path, "quantize", OTHER, endpoint=at(server))
    assert result.returncode == 0, result.stderr
    output = tmp_path / "My.Fine_tune-int8"
    assert json.loads((output / "vacc_deploy.json").read_text())["model"] == "My.Fine_tune"
    assert {*SHARDS, "tokenizer.json"} < set(fetched(server))
    assert not {"evil.py", "onnx/model.safetensors", "pytorch_model.bin"} & set(fetched(server))
    # Nothing of ours in the cache, and a second command asks nobody.
    snapshots = tmp_path / "hf/hub" / f"models--{OTHER.replace('/', '--')}" / "snapshots"
    assert [path.name for path in snapshots.iterdir()] == [COMMIT]
    server.requests.clear()
    prepared = run(tmp_path, "prepare", OTHER, endpoint=at(server))
    assert (prepared.returncode, server.requests) == (0, [])
    manifest = json.loads((tmp_path / "My.Fine_tune-vacc" / "vacc_deploy.json").read_text())
    assert manifest["source"]["repository"] == OTHER
    assert manifest["source"]["revision"] == COMMIT


def test_a_positional_model_name_is_the_model_of_the_catalogue(tmp_path, server):
    result = run(tmp_path, "prepare", "distill-tiny", endpoint=at(server))
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / f"{NAME}-vacc" / "vacc_deploy.json").read_text())
    assert (manifest["model"], manifest["source"]["repository"]) == (NAME, REPOSITORY)


def test_another_architecture_is_refused_before_its_weights_are_fetched(tmp_path, server):
    server.files["config.json"] = b'{"model_type": "mamba"}'
    result = run(tmp_path, "prepare", REPOSITORY, endpoint=at(server))
    assert result.returncode == 1
    assert "has model_type 'mamba'" in result.stderr
    assert fetched(server) == ["config.json"]


@pytest.mark.parametrize("is_left_over", [True, False])
def test_quantized_weights_are_refused_before_they_are_fetched(tmp_path, server, is_left_over):
    config = json.loads(server.files["config.json"])
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    server.files["config.json"] = json.dumps(config).encode()
    if not is_left_over:
        index = json.loads(server.files["model.safetensors.index.json"])
        index["weight_map"]["model.layers.0.mlp.up_proj.weight.absmax"] = SHARDS[0]
        server.files["model.safetensors.index.json"] = json.dumps(index).encode()
    result = run(tmp_path, "prepare", REPOSITORY, endpoint=at(server))
    assert result.returncode == (0 if is_left_over else 1), result.stderr
    assert ("(rule left-over-quantization)" in result.stdout) is is_left_over
    if not is_left_over:
        assert "the weights are quantized already" in result.stderr
        assert not set(SHARDS) & set(fetched(server))


def test_a_repository_without_safetensors_is_refused(tmp_path, server):
    for name in [name for name in server.files if ".safetensors" in name]:
        del server.files[name]
    result = run(tmp_path, "prepare", REPOSITORY, endpoint=at(server))
    assert result.returncode == 1
    assert f"Error: {REPOSITORY} has no .safetensors files." in result.stderr
    del server.files["config.json"]
    result = run(tmp_path, "prepare", REPOSITORY, endpoint=at(server), HF_HOME=str(tmp_path / "h"))
    assert f"Error: {REPOSITORY} has no config.json, so it is not a checkpoint" in result.stderr


def test_an_adapters_repository_is_recognized(tmp_path, server):
    adapter = b'{"base_model_name_or_path": "some/base"}'
    server.files = {"adapter_config.json": adapter, "adapter_model.safetensors": b"x" * 999}
    result = run(tmp_path, "prepare", REPOSITORY, endpoint=at(server))
    assert result.returncode == 1
    assert "is a LoRA adapter, not a whole model. Merge it into its base model 'some/base'" in (
        result.stderr
    )
    assert fetched(server) == ["adapter_config.json"]


def test_a_repository_that_nobody_has_is_no_directory_either(tmp_path, server):
    result = run(tmp_path, "prepare", "deepseekai/DeepSeek-R1-Distill-Qwen-7B", endpoint=at(server))
    assert result.returncode == 1
    assert result.stderr.startswith(
        "Error: There is no directory deepseekai/DeepSeek-R1-Distill-Qwen-7B (did you mean "
        "Distill-Qwen-7B?). deepseekai/DeepSeek-R1-Distill-Qwen-7B is not in the Hugging Face cache"
    )
    assert "(there is no repository of this name, or it is private).\n" in result.stderr
    assert "\nCheck the name. For a private one set HF_TOKEN to a token" in result.stderr
    assert "\n  vacc-deploy prepare DeepSeek-R1-Distill-Qwen-7B\n" in result.stderr


def test_what_can_be_refused_is_refused_before_a_download(tmp_path, server):
    server.repository = OTHER
    args = ("quantize", OTHER, "--method", "gptq")
    assert run(tmp_path, *args, endpoint=at(server)).returncode == 2
    (tmp_path / "My.Fine_tune-vacc").mkdir()
    (tmp_path / "My.Fine_tune-vacc" / "x").touch()
    full = run(tmp_path, "prepare", OTHER, endpoint=at(server))
    assert "Error: My.Fine_tune-vacc exists and is not empty." in full.stderr
    assert server.requests == []


@pytest.mark.parametrize("command", ["prepare", "quantize"])
def test_an_interrupted_download_says_where_its_rest_lies(tmp_path, server, command):
    server.waiting = {f"/{REPOSITORY}/resolve/{COMMIT}/{SHARDS[1]}"}
    options = launch(tmp_path, command, REPOSITORY, endpoint=at(server))
    with subprocess.Popen(**options, stderr=subprocess.PIPE) as process:
        assert server.is_asked.wait(30)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.endswith(
        f"Interrupted. What was downloaded stays in the Hugging Face cache ({tmp_path}/hf/hub). "
        "The same command continues the download.\n"
    )


def cache(tmp_path, monkeypatch, **options):
    """Fill a cache the way any tool of the hub does, and make this process use it."""
    from huggingface_hub import constants

    folder = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return write_checkpoint(folder / "snapshots" / COMMIT, **options)


def test_find_in_cache_needs_a_complete_snapshot(tmp_path, monkeypatch):
    directory = cache(tmp_path, monkeypatch, shards=2)
    assert hub.find_in_cache(REPOSITORY) == hub.Source(directory, REPOSITORY, COMMIT)
    assert hub.fetch(REPOSITORY) == hub.Source(directory, REPOSITORY, COMMIT)
    (directory / SHARDS[1]).unlink()
    assert hub.find_in_cache(REPOSITORY) is None


def test_find_in_cache_without_any_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert hub.find_in_cache(REPOSITORY) is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "  \n", "one\ntwo"])
def test_an_error_without_text_still_gives_a_reason(monkeypatch, text):
    def fails(*args, local_files_only=False, **options):
        raise FileNotFoundError if local_files_only else ConnectionResetError(text)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(REPOSITORY)
    reason = "one" if text.startswith("one") else "ConnectionResetError"
    assert f" ({reason}).\nOn a machine" in str(caught.value)


# ---- half a snapshot, as an interrupted download leaves it -------------------------------------

ALL = ["config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS]


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["down", "offline"])
@pytest.mark.parametrize(
    "lost",
    [[SHARDS[1]], ["model.safetensors.index.json", SHARDS[0]], ["config.json"], ["tokenizer.json"]],
    ids=str,
)
def test_half_a_snapshot_and_no_hub(tmp_path, environment, lost):
    folder = tmp_path / "hf" / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = write_checkpoint(folder / "snapshots" / COMMIT, shards=2)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for name in lost if lost != ["tokenizer.json"] else [*lost, *SHARDS]:
        (snapshot / name).unlink()
    result = run(tmp_path, "prepare", "--model", NAME, "--json", **environment)
    assert result.returncode == 1
    text = json.loads(result.stdout)["error"]["message"]
    assert text.startswith(
        f"{REPOSITORY} is not whole in the Hugging Face cache ({tmp_path}/hf/hub"
    )
    why = "HF_HUB_OFFLINE forbids downloads" if environment else "Connection refused"
    assert "cannot be downloaded from http://127.0.0.1:9 (" in text and why in text
    # Without the index the names of the shards still tell how many there are.
    missing = [name for name in lost if name != "model.safetensors.index.json"]
    missing = ["tokenizer.json", *SHARDS] if lost == ["tokenizer.json"] else missing
    assert f"\n{snapshot} lacks {', '.join(missing)}.\n" in text
    assert text.endswith(ADVICE.rstrip("\n"))
    if not environment and lost == [SHARDS[1]]:
        dry = run(tmp_path, "prepare", "--model", NAME, "--dry-run")
        assert f"{REPOSITORY} is not whole in the Hugging Face cache, and a dry run" in dry.stderr


def test_deepseeks_own_names_tell_how_many_shards_there_are(tmp_path):
    names = [f"model-0000{number}-of-000002.safetensors" for number in (1, 2)]
    directory = write_checkpoint(tmp_path, shard_names=names, with_index=False)
    (directory / names[1]).unlink()
    assert hub.find_missing(directory) == [names[1]]


def test_half_a_snapshot_is_finished_where_the_hub_answers(tmp_path, server):
    folder = tmp_path / "hf" / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    for name in ("config.json", SHARDS[0]):
        (folder / "snapshots" / COMMIT / name).write_bytes(server.files[name])
    result = run(tmp_path, "prepare", "--model", NAME, endpoint=at(server))
    assert result.returncode == 0, result.stderr
    assert SHARDS[1] in fetched(server) and SHARDS[0] not in fetched(server)


def test_what_the_library_prints_while_it_is_loaded_is_no_part_of_the_json(tmp_path):
    endpoint = "http://127.0.0.1:99999"
    result = run(tmp_path, "prepare", "--model", NAME, "--json", endpoint=endpoint)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "huggingface_hub cannot be loaded" in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
def test_a_variable_that_the_library_cannot_read(tmp_path, name):
    result = run(tmp_path, "prepare", "--model", NAME, **{name: "soon"})
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "huggingface_hub cannot be loaded: invalid literal for int()" in result.stderr
    assert name in result.stderr.partition("these are set: ")[2]
    assert result.stderr.endswith(". Correct the one that is wrong.\n")


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"cannot be loaded: .*huggingface_hub") as caught:
        hub.find_in_cache(REPOSITORY)
    advice = "Install it again:\n  python3 -m pip install --force-reinstall huggingface_hub"
    assert str(caught.value).endswith(advice)


def test_a_socks_proxy_ends_in_the_message_of_every_failed_download(tmp_path):
    proxy = {"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": ""}
    result = run(tmp_path, "prepare", "--model", NAME, "--json", **proxy)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    text = json.loads(result.stdout)["error"]["message"]
    assert text.endswith(ADVICE.rstrip("\n"))
    # Where the package is installed, the closed port refuses.
    assert "\n  unset ALL_PROXY\n" in text or "the proxy in ALL_PROXY: check it" in text

"""Let llama.cpp (the package xllamacpp) continue prompts with a directory of ``--format gguf``.

It also makes ids of the texts of the request. llama.cpp rounds the inputs of Q8_0 products itself.
"""

import json
import urllib.request
from pathlib import Path

import xllamacpp
from consumer_io import respond

CONTEXT = 2048


def start(directory):
    """Return llama.cpp's server in this process, on one thread, and the address it listens at."""
    (path,) = Path(directory).glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.port = 0
    params.warmup = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    # Softmax and the key-value cache in float32 are what the float reference has.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def ask(server, path, body):
    """Return what the server answers to an object."""
    data, head = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}{path}", data, head)
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def continue_prompt(server, ids, num_tokens):
    """Return the ids with which llama.cpp goes on, greedily; an end token ends nothing.

    Token by token, since llama.cpp would stop at an end token or, asked to ignore it, choose
    another one. What it has computed for the prompt stays in its cache.
    """
    found = []
    for _ in range(num_tokens):
        settings = {"temperature": 0, "top_k": 1, "cache_prompt": True, "return_tokens": True}
        answer = ask(server, "/completion", {"prompt": [*ids, *found], "n_predict": 1, **settings})
        found += answer["tokens"]
    return found


def tokenize(server, text):
    """Return the ids that llama.cpp makes of a text, without a BOS."""
    body = {"content": text, "add_special": False, "parse_special": True}
    return ask(server, "/tokenize", body)["tokens"]


def go_on(server, request):
    """Continue each prompt, and tell the ids that llama.cpp makes of the texts."""
    count = request["num_tokens"]
    return {
        "tokens": [continue_prompt(server, ids, count) for ids in request["prompts"]],
        "ids": [tokenize(server, text) for text in request["texts"]],
    }


if __name__ == "__main__":
    respond("xllamacpp", start, go_on)

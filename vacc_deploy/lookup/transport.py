"""Why a download failed, in words of the user's, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence

from vacc_deploy.outputs.file_system import FULL

# What is wrong, a clause; what to do, a sentence or an empty text.
Explanation = tuple[str, str]
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
_MAX_REASON = 300


def explain_failure(err: BaseException, endpoint: str) -> Explanation:
    """Return why a download from ``endpoint`` failed, and the cure."""
    chain = list(_chain(err))
    text = " ".join(str(link) for link in chain)
    explanation = (
        _socks(chain, text)
        or _endpoint(endpoint)
        or _disk(chain, text)
        or _certificate(text)
        or _hub(chain)
        or _token(chain, text)
    )
    if explanation:
        return explanation
    reason = _first_line(err.__cause__ or err)
    names = _set_proxies()
    # Whatever failed, it went through the proxy; its value may hold a password, so it is not told.
    cure = f"The download goes through the proxy in {_listed(names)}: check it" if names else ""
    return reason, f"{cure}, or run: unset {' '.join(names)}" if names else ""


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was made from."""
    seen = set[int]()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0][:_MAX_REASON] if lines else type(err).__name__


def _set_proxies(begin: str = "") -> list[str]:
    """Return the variables that are set to a proxy whose address begins with ``begin``."""
    names = [name for upper in _PROXIES for name in (upper, upper.lower())]
    return [n for n in names if os.environ.get(n) and os.environ[n].lower().startswith(begin)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def _socks(chain: Sequence[BaseException], text: str) -> Explanation | None:
    is_missing = "socksio" in text or "Missing dependencies for SOCKS" in text
    if not is_missing:
        return None
    names = _set_proxies("socks")
    library = "httpx" if any(isinstance(link, ImportError) for link in chain) else "requests"
    where = f"{_listed(names)} name" + ("" if len(names) > 1 else "s") if names else "there is"
    cure = f"Run one of these:\n  pip install '{library}[socks]'"
    cure += f"\n  unset {' '.join(names)}" if names else ""
    return f"{where} a SOCKS proxy, and the Python package for such proxies is missing", cure


def _endpoint(endpoint: str) -> Explanation | None:
    if re.match(r"https?://[^/\s]", endpoint):
        return None
    return (
        "HF_ENDPOINT is not the address of a hub",
        "Set HF_ENDPOINT to an address that begins with https://, for example "
        "https://hf-mirror.com, or run: unset HF_ENDPOINT",
    )


def _disk(chain: Sequence[BaseException], text: str) -> Explanation | None:
    numbers = [link.errno for link in chain if isinstance(link, OSError) and link.errno]
    if any(number in FULL for number in numbers) or "No space left on device" in text:
        return (
            "the disk of the cache is full",
            "Free space, or set HF_HOME to a directory on another disk. What is downloaded stays.",
        )
    for link in chain:
        # Errors of connections have no file name.
        if isinstance(link, OSError) and link.errno in _CLOSED and link.filename:
            return (
                f"the cache cannot be written: {link.strerror}: {os.fsdecode(link.filename)}",
                "Set HF_HOME to a directory that you may write to.",
            )
    return None


def _certificate(text: str) -> Explanation | None:
    for name in _CERTIFICATES:
        value = os.environ.get(name)
        if value and not os.path.exists(value):
            return f"{name} is {value}, which does not exist", f"Correct it, or run: unset {name}"
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return None
    return (
        "its certificate is not trusted: CERTIFICATE_VERIFY_FAILED",
        "Where a proxy of your network puts in a certificate of its own, set SSL_CERT_FILE to a "
        "file with that one.",
    )


def _hub(chain: Sequence[BaseException]) -> Explanation | None:
    """Return what an answer of the hub says."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    for link in chain:
        if isinstance(link, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids downloads", "To allow them, run: unset HF_HUB_OFFLINE"
        if isinstance(link, GatedRepoError):
            return (
                "its owner has to grant you access",
                "Ask for access on the page of the repository. Then set HF_TOKEN to your token.",
            )
        if isinstance(link, RepositoryNotFoundError):
            return (
                "there is no repository of this name, or it is private",
                "Check the name. For a private one set HF_TOKEN to a token that may read it.",
            )
        code = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(code, int) and code >= 400:
            return f"it answers {code}: {_first_line(link)}", _advise_on(code)
    return None


def _advise_on(code: int) -> str:
    if code in (401, 403):
        return "Set HF_TOKEN to a token that may read this repository."
    if code == 407:
        return f"Give the proxy in {_listed(_set_proxies())} its name and password."
    if code == 429:
        return "It is asked too often. Wait some minutes, or set HF_TOKEN."
    return "Try again later, or use another mirror." if code >= 500 else ""


def _token(chain: Sequence[BaseException], text: str) -> Explanation | None:
    is_header = any(isinstance(link, UnicodeEncodeError) for link in chain)
    if not is_header and "Illegal header value" not in text:
        return None
    return (
        "the access token has characters that no token has",
        "Correct HF_TOKEN, or the file that hf auth login has written.",
    )

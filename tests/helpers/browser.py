"""Chromium without a window, which no page leads to a network, for tests and for screenshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    # The browser itself asks for nothing either.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-first-run", "--no-default-browser-check", "--disable-default-apps"),
    # A name that is looked up after all is not found.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]


def find_chromium() -> str | None:
    """Return the program, that of ``CHROMIUM`` first."""
    names = (os.environ.get("CHROMIUM", ""), *NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def why_not() -> str:
    """Return why no page can be opened here; nothing where one can."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "the package playwright is not installed: pip install vacc-deploy[browser]"
    if find_chromium() is None:
        return "there is no Chromium: apt-get install chromium fonts-noto-cjk, or set CHROMIUM"
    return ""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser, a ``playwright.sync_api.Browser``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()

"""Look at pages of ``--report``: screenshots of both widths in light and dark, and an A4 PDF.

    python tools/screenshots.py report.html --output shots

Needs Chromium and the extra ``browser``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from browser import chromium, why_not  # noqa: E402

WIDTHS, SCHEMES = (400, 1600), ("light", "dark")


def main() -> None:
    """Write the pictures of the pages that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, metavar="FILE.html")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    if reason := why_not():
        parser.error(reason)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for page in arguments.pages:
            take(browser, page, arguments.output)


def take(browser, path: Path, output: Path) -> None:
    """Write the pictures and the PDF of one page; the folded tables stay folded."""
    for scheme in SCHEMES:
        for width in WIDTHS:
            tab = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
            )
            tab.goto(path.resolve().as_uri())
            picture = output / f"{path.stem}-{width}-{scheme}.png"
            tab.screenshot(path=picture, full_page=True)
            if (width, scheme) == (WIDTHS[-1], SCHEMES[0]):
                tab.pdf(path=output / f"{path.stem}-a4.pdf", prefer_css_page_size=True)
            tab.close()
            sys.stdout.write(f"{picture}\n")


if __name__ == "__main__":
    main()

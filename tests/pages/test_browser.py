"""Pages in headless Chromium: nothing is loaded, nothing overflows, every text can be read."""

import pytest
import torch
from browser import chromium, why_not
from page_values import MANIFEST, REPORT, write

from vacc_deploy.pages.check_page import check_page
from vacc_deploy.pages.quantize_page import quantize_page
from vacc_deploy.pages.texts import LANGUAGES
from vacc_deploy.pages.verify_page import verify_page
from vacc_deploy.quantize.result import QuantizeResult
from vacc_deploy.reference.compare import LayerError
from vacc_deploy.reference.limits import Limits
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.reference.verify import VerifyResult

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(why_not()), reason=why_not())]

KINDS = ("verify", "quantize", "check")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Each pair of a text's colour and those behind it, the nearest first, with one of its texts.
READ_COLOURS = """() => {
  const found = {}, known = new Map();
  const behind = element => {
    if (!element) return "";
    if (!known.has(element))
      known.set(element, getComputedStyle(element).backgroundColor + ";" +
        behind(element.parentElement));
    return known.get(element);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || ["TITLE", "DESC", "STYLE"].includes(element.tagName.toUpperCase())) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    found[colour + behind(element)] =
      {text: text.slice(0, 40), colour, behind: behind(element).split(";").filter(Boolean)};
  }
  return Object.values(found);
}"""


def make_pages(directory):
    """Write one page of each kind, of a model with many layers and long names."""
    numbers = torch.linspace(-7, 1, 511, dtype=torch.float64)
    kl = 10**numbers
    scores = NextTokenScores(
        511, 3.0, 3.1, 0.5, 0.01, 10.0, 0.9, kl, torch.full((511, 2), 97, dtype=torch.int64)
    )
    long = "a" * 180
    linear = REPORT["linears"][0]
    report = REPORT | {
        "linears": [
            linear | {"name": f"model.layers.{layer}.{kind}", "error_rtn": 0.01 * layer}
            for layer in range(9)
            for kind in LINEARS
        ]
    }
    write(directory, report, MANIFEST | {"files": MANIFEST["files"] | {long: {"bytes": 1}}})
    result = VerifyResult(
        model=f"model-{long}",
        deployed_dir=directory,
        reference_dir=directory / long,
        text="text.txt",
        limits=Limits(),
        scores=scores,
        layers=tuple(LayerError(layer, 0.001 * layer, 60 - layer / 2) for layer in range(80)),
        failures=(f"mean KL is 0.5, the limit is 0.02 {long}",),
        notes=("a note",),
        tokens=torch.full((1, 512), 97),
    )
    finding = {"code": "VD001", "severity": "error", "title": long, "got": long, "fix": "a"}
    others = [{"code": "VD002", "severity": severity} for severity in ("warning", "note")]
    check = {"findings": [finding, *others], "targets": [{"target": long, "kind": "directory"}]}
    quantized = QuantizeResult(long, directory, "gptq", 1 << 30, 1 << 29, seconds=3.0)
    made = {}
    for language in LANGUAGES:
        told = {"language": language, "command_line": f"vacc-deploy verify {long}"}
        made[f"verify-{language}"] = verify_page(result, **told)
        made[f"quantize-{language}"] = quantize_page(quantized, **told)
        made[f"check-{language}"] = check_page(check, **told)
    return made


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    from vacc_deploy.pages import verify_page as module

    class Tokenizer:
        @staticmethod
        def from_dir(directory):
            return Tokenizer()

        def decode(self, ids):
            return "江 word"[: len(ids)] + "x" * max(len(ids) - 6, 0)

    directory = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Tokenizer", Tokenizer)
        made = make_pages(directory)
    for name, text in made.items():
        (directory / f"{name}.html").write_text(text, "utf-8")
    return directory


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


NAMES = [f"{kind}-{language}" for kind in KINDS for language in LANGUAGES]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_quiet_fits_and_can_be_read(pages, browser, name):
    path = pages / f"{name}.html"
    tab, asked, said = browser.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for width in (400, 1600):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        colours = tab.evaluate(READ_COLOURS)
        assert len(colours) >= 4
        assert [one for one in colours if contrast(one) < 4.5] == [], scheme
    assert asked == [path.as_uri()] and said == []
    tab.close()


def test_a_page_of_a_white_text_is_noticed(pages, browser):
    """The test of the contrast can fail."""
    tab = browser.new_page()
    tab.set_content("<body style='background:#fff'><p style='color:#999'>grey</p></body>")
    (found,) = tab.evaluate(READ_COLOURS)
    assert contrast(found) == pytest.approx(2.85, abs=0.02)
    tab.close()


def test_paper_is_light_and_has_no_closed_tables(pages, browser):
    tab = browser.new_page(viewport={"width": 703, "height": 900}, color_scheme="dark")
    tab.goto((pages / "verify-en.html").as_uri())
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 703
    shown = "[...document.querySelectorAll('details:not([open])')].filter(one => one.offsetHeight)"
    assert tab.evaluate(f"{shown}.length") == 0
    assert tab.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    tab.close()


def contrast(found):
    """Return the contrast of a text, by WCAG 2: 1 to 21."""
    behind = (255.0, 255.0, 255.0)
    for colour in reversed(found["behind"]):
        *rgb, alpha = numbers(colour)
        behind = tuple(
            alpha * new + (1 - alpha) * old for new, old in zip(rgb, behind, strict=True)
        )
    low, high = sorted((luminance(numbers(found["colour"])[:3]), luminance(behind)))
    return (high + 0.05) / (low + 0.05)


def numbers(colour):
    values = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")]
    return values if len(values) == 4 else [*values, 1.0]


def luminance(rgb):
    parts = [value / 255 for value in rgb]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

"""A recording whose every name is markup: text on the page, in every panel, and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import hostile
import pytest
import synthetic
from playwright.sync_api import Frame, Page, expect
from serving import Open, serve
from test_tab import PANELS, region, wait_for_selection

INJECTED = r"""() => {
  const found = [];
  for (const element of document.querySelectorAll("*")) {
    const name = element.localName;
    const isActive = "img iframe object embed base link style form meta script".split(" ").includes(name);
    if (isActive && !window.known.includes(element.outerHTML)) found.push(element.outerHTML.slice(0, 200));
    for (const { name: attribute, value } of element.attributes) {
      const isAddress = ["href", "src", "action"].includes(attribute) && /^\s*(javascript|data):/i.test(value);
      if (attribute.startsWith("on") || isAddress) found.push(`${name} ${attribute}=${value}`);
    }
  }
  return found;
}"""
KNOWN = "window.known = [...document.querySelectorAll('script, base, link, style, meta')].map((e) => e.outerHTML)"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard over the hostile recording."""
    logdir = tmp_path_factory.mktemp("hostile")
    hostile.write(logdir)
    with serve(logdir) as url:
        yield url


@pytest.fixture
def frame(page: Page, open_tab: Open, address: str) -> Iterator[Frame]:
    """The tab on the hostile run; in the end nothing of it may have run or become an element."""
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    frame = open_tab(f"&p.dgmtracker.run={quote(hostile.RUN)}", url=address)
    frame.evaluate(KNOWN)
    yield frame
    assert dialogs == []
    for place in (frame, page.main_frame):
        assert place.evaluate("typeof broken") == "undefined"
    assert frame.evaluate(INJECTED) == []
    assert frame.title() == "DGMTracker"


def picture(page: Page, name: str) -> None:
    """Keep a picture where ``DGM_TB_PICTURES`` says, to look at."""
    if folder := os.environ.get("DGM_TB_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_names_and_sentences_are_shown_as_they_are(page: Page, frame: Frame) -> None:
    layer = hostile.renamed(synthetic.BAD_LAYER)
    findings = region(frame, "Findings")
    findings.get_by_role("button").filter(has_text="exp overflows").click()
    wait_for_selection(page, run=hostile.RUN, layer=layer, step="437")
    for evil in hostile.EVIL:
        expect(findings).to_contain_text(evil)
    expect(region(frame, "Loss")).to_contain_text(hostile.renamed("train_loss"))
    expect(region(frame, "Dynamics").locator("header")).to_contain_text(layer)
    expect(region(frame, "Dynamics").locator("canvas.chart-base")).to_be_visible()
    expect(region(frame, "Neurons").locator("header")).to_contain_text(layer)
    expect(region(frame, "Samples")).to_contain_text(f"label {hostile.EVIL[0]}")
    expect(region(frame, "Model")).to_contain_text("<img")
    frame.locator("details.notes summary").click()
    expect(frame.locator("details.notes li").first).to_contain_text(hostile.ALL_EVIL)
    options = frame.get_by_label("run", exact=True).locator("option")
    expect(options.filter(has_text=hostile.RUN)).to_have_count(1)
    expect(frame.locator(".toolbar")).to_contain_text("damaged part")
    picture(page, "hostile")
    assert_nothing_is_turned_around(frame)
    assert_the_layout_holds(frame)


def assert_nothing_is_turned_around(frame: Frame) -> None:
    """A name that runs from right to left leaves what stands beside it in its place."""
    item = region(frame, "Loss").get_by_role("button", name=hostile.renamed("kl"))
    expect(item).to_contain_text("\u202e")
    name, value = item.locator("bdi").bounding_box(), item.locator("b").bounding_box()
    assert name is not None
    assert value is not None
    assert name["x"] + name["width"] <= value["x"] + 1


def assert_the_layout_holds(frame: Frame) -> None:
    """No panel is pushed away, nothing is wider than the page."""
    expect(region(frame, "Dynamics").locator("canvas.chart-base")).to_be_visible()
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in PANELS:
        box = region(frame, name).bounding_box()
        assert box is not None
        assert box["width"] >= 200
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1281
        assert box["y"] + box["height"] <= 801
    heads = "[...document.querySelectorAll('.panel > header')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert frame.evaluate(heads) == 0
    assert frame.evaluate("getComputedStyle(document.body).display") == "block"


def test_every_part_of_every_panel_may_be_used(page: Page, frame: Frame) -> None:
    model, neurons = region(frame, "Model"), region(frame, "Neurons")
    for finding in range(region(frame, "Findings").get_by_role("button").count()):
        region(frame, "Findings").get_by_role("button").nth(finding).click()
    node = model.get_by_role("button", name=hostile.renamed("encoder.2"), exact=False).first
    node.hover()
    node.click()
    wait_for_selection(page, layer=hostile.renamed("encoder.2"))
    expect(neurons.locator("header")).to_contain_text(hostile.renamed("encoder.2"))
    neurons.locator('[data-column="0"]').first.hover()
    expect(neurons.locator(".tip")).to_be_visible()
    search = frame.get_by_placeholder("filter layers")
    for text in ("<img", "(((", "\\", "javascript:"):
        search.fill(text)
        page.wait_for_timeout(50)
    search.fill("")
    for quantity in ("gradient", "weight", "update"):
        region(frame, "Dynamics").get_by_label("quantity").select_option(quantity)
    plot = region(frame, "Loss").locator(".u-over")
    plot.hover()
    picture(page, "hostile-used")
    frame.get_by_label("run", exact=True).select_option("__proto__")
    wait_for_selection(page, run="__proto__")
    expect(region(frame, "Dynamics").locator("canvas.chart-base")).to_be_visible()


def test_names_in_the_address_are_no_markup_either(page: Page, open_tab: Open, address: str) -> None:
    evil = quote(hostile.ALL_EVIL)
    frame = open_tab(
        "".join(f"&p.dgmtracker.{key}={evil}" for key in ("run", "step", "layer", "neurons", "sample", "finding")),
        url=address,
    )
    expect(region(frame, "Loss")).to_be_visible()
    frame.evaluate(KNOWN)
    page.evaluate(f"location.hash = '#dgmtracker&p.dgmtracker.layer={evil}&p.dgmtracker.quantity={evil}'")
    page.wait_for_timeout(300)
    assert frame.evaluate("typeof broken") == "undefined"
    assert frame.evaluate(INJECTED) == []

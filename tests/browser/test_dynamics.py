"""The dynamics view answers questions about all neurons: hovering, brushing, zooming, likeness, comparing, files."""

import csv
import io
import xml.etree.ElementTree as ET

import pytest
from serving import Open

playwright = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Frame, Locator, Page, expect  # noqa: E402

WIDE_RUN = "&p.dgmtracker.run=vae_healthy&p.dgmtracker.step=300&p.dgmtracker.layer=encoder.0"


def dynamics(frame: Frame) -> Locator:
    return frame.get_by_role("region", name="Dynamics")


def drag(page: Page, panel: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag over the chart, from and to parts of its width and height."""
    box = panel.locator(".u-over").first.bounding_box()
    assert box is not None
    at = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=5)
    page.mouse.up()


def selected(page: Page) -> list[int]:
    """The neurons in the address."""
    text = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('p.dgmtracker.neurons')")
    return [int(neuron) for neuron in text.split(",")] if text else []


def test_a_box_selects_all_neurons_in_it_shift_adds_and_alt_removes(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(WIDE_RUN))
    panel.get_by_role("button", name="box").click()
    with page.expect_response(lambda answer: "/brush?" in answer.url and "kind=box" in answer.url):
        drag(page, panel, (0.1, 0.02), (0.9, 0.98))
    expect(panel.locator(".selected")).to_contain_text("of 128 neurons")
    everything = selected(page)
    assert everything == list(range(128)), "all lines pass through the whole chart"
    page.keyboard.down("Alt")
    with page.expect_response(lambda answer: "/brush?" in answer.url):
        drag(page, panel, (0.4, 0.02), (0.6, 0.3))
    page.keyboard.up("Alt")
    page.wait_for_function(
        "n => (new URLSearchParams(location.hash.slice(1)).get('p.dgmtracker.neurons') ?? '').split(',').length < n",
        arg=128,
    )
    fewer = selected(page)
    assert 0 < len(fewer) < 128
    page.keyboard.down("Shift")
    with page.expect_response(lambda answer: "/brush?" in answer.url):
        drag(page, panel, (0.4, 0.02), (0.6, 0.3))
    page.keyboard.up("Shift")
    page.wait_for_function(
        "n => (new URLSearchParams(location.hash.slice(1)).get('p.dgmtracker.neurons') ?? '').split(',').length === n",
        arg=128,
    )
    assert sorted(selected(page)) == everything
    panel.get_by_role("button", name="clear").click()
    expect(panel.locator(".selected")).to_have_count(0)


def test_a_stroke_selects_the_neurons_that_cross_it(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(WIDE_RUN))
    panel.get_by_role("button", name="cross").click()
    with page.expect_response(lambda answer: "/brush?" in answer.url and "kind=line" in answer.url):
        drag(page, panel, (0.5, 0.01), (0.501, 0.99))
    expect(panel.locator(".selected")).to_contain_text("128 of 128 neurons")


def test_dragging_zooms_time_and_value_and_double_click_goes_back(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(WIDE_RUN))
    with page.expect_response(lambda answer: "/density?" in answer.url and "first=" in answer.url):
        drag(page, panel, (0.3, 0.3), (0.6, 0.7))
    expect(panel.get_by_role("button", name="values · reset")).to_be_visible()
    panel.locator(".u-over").dblclick()
    expect(panel.get_by_role("button", name="values · reset")).to_have_count(0)


def test_the_pointer_finds_neurons_that_are_not_drawn(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(WIDE_RUN))
    expect(panel).to_contain_text("of 128 neurons drawn")
    box = panel.locator(".u-over").bounding_box()
    assert box is not None
    found = set()
    for part in (0.3, 0.4, 0.5, 0.6, 0.7):
        with page.expect_response(lambda answer: "/nearest?" in answer.url) as answer:
            page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * part)
        found.add(answer.value.status)
    assert found == {200}


def test_neurons_alike_and_neurons_that_stand_out_are_listed(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(f"{WIDE_RUN}&p.dgmtracker.neurons=5"))
    panel.get_by_label("ask").select_option("similar")
    answers = panel.get_by_role("complementary")
    expect(answers.locator("li")).to_have_count(24)
    answers.get_by_role("button", name="select all 24").click()
    expect(panel.locator(".selected")).to_contain_text("25 of 128 neurons")
    assert selected(page)[0] == 5
    panel.get_by_label("ask").select_option("unusual")
    expect(answers).to_contain_text("most unusual")
    expect(answers.locator("li, .note").first).to_be_visible()
    answers.get_by_role("button", name="close").click()
    expect(answers).to_have_count(0)


def test_two_runs_and_two_layers_stand_side_by_side(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(WIDE_RUN))
    compare = panel.get_by_label("compare with")
    compare.select_option("run:vae_nan")
    expect(panel.locator(".u-over")).to_have_count(2)
    expect(panel).to_contain_text("run vae_nan")
    compare.select_option("layer:encoder.2")
    expect(panel).to_contain_text("layer encoder.2")
    compare.select_option("")
    expect(panel.locator(".u-over")).to_have_count(1)


def test_the_chart_is_saved_as_numbers_and_as_a_picture(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(WIDE_RUN))
    expect(panel).to_contain_text("neurons drawn")
    contents = {}
    for format_ in ("csv", "png", "svg"):
        with page.expect_download() as download:
            panel.get_by_label("export").select_option(format_)
        assert download.value.suggested_filename == f"encoder.0_activation_mean.{format_}"
        contents[format_] = download.value.path().read_bytes()
    head, *rows = csv.reader(io.StringIO(contents["csv"].decode()))
    assert head[0] == "step"
    assert len(head) > 64
    assert all(name.startswith("neuron_") for name in head[1:])
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)
    assert all(len(row) == len(head) for row in rows)
    assert contents["png"].startswith(b"\x89PNG")
    assert len(contents["png"]) > 5000
    picture = ET.fromstring(contents["svg"])
    assert len(picture.findall("{http://www.w3.org/2000/svg}path")) > 64


def test_how_finely_the_data_were_kept_is_told_under_the_pointer(page: Page, open_tab: Open) -> None:
    panel = dynamics(open_tab(WIDE_RUN))
    panel.locator(".u-over").hover()
    expect(panel.locator(".disclosure")).to_contain_text("windows of 16 steps")


def test_smoothing_leaves_what_is_recorded_alone(page: Page, open_tab: Open) -> None:
    frame = open_tab("&p.dgmtracker.run=vae_nan&p.dgmtracker.step=437&p.dgmtracker.layer=to_logvar")
    panel = dynamics(frame)
    expect(panel).to_contain_text("not finite")
    panel.get_by_label("smoothing").select_option("0.9")
    expect(panel).to_contain_text("not finite")

"""The tab in a real TensorBoard: the paper's story, the panels, the URL, the states."""

import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import synthetic
from playwright.sync_api import Frame, Locator, Page, expect
from serving import Open, serve

from dgm_tb.framing import frame as frame_record
from dgm_tb.records import Record, encode

PANELS = ["Findings", "Loss", "Model", "Dynamics", "Neurons", "Samples"]
NAN_RUN = "&p.dgmtracker.run=vae_nan"


def selection(page: Page) -> dict[str, str]:
    """Our part of the URL."""
    parts = [part.split("=", 1) for part in page.url.split("#", 1)[1].split("&")]
    return {key.removeprefix("p.dgmtracker."): unquote(value) for key, value in (p for p in parts if len(p) == 2)}


def wait_for_selection(page: Page, **expected: str) -> None:
    """Wait until the URL says so."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not expected.items() <= selection(page).items():
        page.wait_for_timeout(50)
    assert expected.items() <= selection(page).items()


def region(frame: Frame, name: str) -> Locator:
    return frame.get_by_role("region", name=name, exact=True)


def test_panels_are_landmarks_and_the_focus_snapshot_is_a_slider(open_tab: Open) -> None:
    frame = open_tab(NAN_RUN)
    for name in PANELS:
        expect(region(frame, name)).to_be_visible()
    slider = frame.get_by_role("slider", name="focus snapshot", exact=True)
    expect(slider).to_have_attribute("aria-valuetext", "step 437, train_loss Inf")


def test_the_tab_opens_on_the_run_that_failed_and_its_worst_finding(page: Page, open_tab: Open) -> None:
    open_tab()
    wait_for_selection(page, run="vae_nan", step="437", layer="to_logvar", neurons="3,11", sample="1203")


def test_a_finding_leads_to_snapshot_layer_neurons_and_image_at_once(page: Page, open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=10&p.dgmtracker.layer=encoder.0")
    region(frame, "Findings").get_by_role("button").filter(has_text="nonfinite").click()
    wait_for_selection(page, run="vae_nan", step="437", layer="to_logvar", neurons="3,11", sample="1203")
    expect(region(frame, "Dynamics")).to_contain_text("to_logvar")
    expect(region(frame, "Dynamics")).to_contain_text("2 outliers")
    expect(region(frame, "Neurons").locator("header")).to_contain_text("#3")
    expect(region(frame, "Findings")).to_contain_text("Clamp the log-variance")
    abnormal = frame.get_by_role("button", name="abnormal example, dataset index 1203", exact=False)
    expect(abnormal).to_have_attribute("aria-pressed", "true")
    expect(abnormal).to_contain_text("0 … 14.")


def test_a_deep_link_restores_the_selection(page: Page, open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=300&p.dgmtracker.layer=encoder.2&p.dgmtracker.neurons=9")
    expect(frame.get_by_role("slider")).to_have_value("300")
    expect(region(frame, "Dynamics").locator("header")).to_contain_text("encoder.2")
    expect(region(frame, "Neurons").locator("header")).to_contain_text("#9")
    assert selection(page)["step"] == "300"


def test_an_edited_url_is_followed(page: Page, open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=300&p.dgmtracker.layer=encoder.2")
    expect(region(frame, "Dynamics").locator("header")).to_contain_text("encoder.2")
    page.evaluate(f"location.hash = '#dgmtracker{NAN_RUN}&p.dgmtracker.step=12&p.dgmtracker.layer=to_mu'")
    expect(frame.get_by_role("slider")).to_have_value("12")
    expect(region(frame, "Dynamics").locator("header")).to_contain_text("to_mu")


def test_keys_walk_snapshots_and_findings(page: Page, open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=300&p.dgmtracker.layer=encoder.2")
    slider = frame.get_by_role("slider")
    slider.press("ArrowRight")
    expect(slider).to_have_value("301")
    slider.press("Shift+ArrowLeft")
    expect(slider).to_have_value("291")
    slider.press("]")
    wait_for_selection(page, finding="nonfinite-437", step="437")
    slider.press("]")
    slider.press("]")
    wait_for_selection(page, finding="dead_units-200", layer="decoder.1", neurons="7")
    slider.press("Escape")
    page.wait_for_timeout(100)
    assert "finding" not in selection(page)
    frame.locator("body").press("/")
    expect(frame.get_by_placeholder("filter layers")).to_be_focused()
    frame.get_by_placeholder("filter layers").press("Escape")
    frame.locator("body").press("?")
    expect(frame.get_by_role("dialog")).to_be_visible()


def test_a_layer_of_the_model_becomes_the_focus_layer(page: Page, open_tab: Open) -> None:
    frame = open_tab(NAN_RUN)
    region(frame, "Model").get_by_role("button", name="encoder.2 Linear").click()
    wait_for_selection(page, layer="encoder.2")
    expect(region(frame, "Dynamics").locator("header")).to_contain_text("encoder.2")


def test_groups_of_the_model_close_and_open(open_tab: Open) -> None:
    model = region(open_tab(f"{NAN_RUN}&p.dgmtracker.step=5&p.dgmtracker.layer=to_mu"), "Model")
    expect(model.get_by_role("button", name="encoder.1 ReLU")).to_be_visible()
    model.get_by_role("button", name="encoder, group").press("Enter")
    expect(model.get_by_role("button", name="encoder.1 ReLU")).to_have_count(0)
    model.get_by_role("button", name="encoder, group").press("Enter")
    expect(model.get_by_role("button", name="encoder.1 ReLU")).to_be_visible()


def test_a_neuron_shows_its_numbers_and_retargets(page: Page, open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=437&p.dgmtracker.layer=to_logvar&p.dgmtracker.neurons=3")
    neurons = region(frame, "Neurons")
    neurons.get_by_role("button", name="abnormal").click()
    cell = neurons.locator('[data-column="0"][data-neuron="5"]')
    cell.hover()
    expect(neurons.locator(".tip")).to_contain_text("encoder.2 #5")
    expect(neurons.locator(".tip")).to_contain_text("+1.00 scaled")
    expect(neurons.locator(".tip")).to_contain_text("80 raw")
    cell.click()
    wait_for_selection(page, layer="encoder.2", neurons="5")


def test_a_layer_without_a_matrix_says_why(open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=437&p.dgmtracker.layer=decoder.0")
    expect(region(frame, "Neurons")).to_contain_text("randn_like between it and its source")


def test_dragging_zooms_both_time_charts_and_samples_again(page: Page, open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=300&p.dgmtracker.layer=encoder.0")
    plot = region(frame, "Dynamics").locator(".u-over")
    box = plot.bounding_box()
    assert box is not None
    with page.expect_response(lambda response: "dynamics" in response.url and "first=" in response.url):
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=4)
        page.mouse.up()
    expect(region(frame, "Loss").get_by_role("button", name="Reset zoom")).to_be_visible()
    plot.dblclick()
    expect(region(frame, "Loss").get_by_role("button", name="Reset zoom")).to_have_count(0)


def test_another_quantity_is_shown_or_its_absence_explained(page: Page, open_tab: Open) -> None:
    frame = open_tab(f"{NAN_RUN}&p.dgmtracker.step=300&p.dgmtracker.layer=encoder.1")
    region(frame, "Dynamics").get_by_label("quantity").select_option("weight")
    expect(region(frame, "Dynamics")).to_contain_text("has no weights of its own")
    region(frame, "Dynamics").get_by_label("quantity").select_option("gradient")
    expect(region(frame, "Dynamics")).to_contain_text("128 neurons drawn")
    wait_for_selection(page, quantity="gradient")


def test_the_theme_follows_tensorboards_toggle(page: Page, open_tab: Open) -> None:
    frame = open_tab(NAN_RUN)
    background = "getComputedStyle(document.body).backgroundColor"
    assert frame.evaluate(background) == "rgb(255, 255, 255)"
    page.evaluate("document.body.classList.add('dark-mode')")
    frame.wait_for_function(f"{background} === 'rgb(48, 48, 48)'")
    page.evaluate("document.body.classList.remove('dark-mode')")
    frame.wait_for_function(f"{background} === 'rgb(255, 255, 255)'")


def test_runs_are_chosen_in_the_tab(page: Page, open_tab: Open) -> None:
    frame = open_tab(NAN_RUN)
    frame.get_by_label("run", exact=True).select_option("vae_healthy")
    wait_for_selection(page, run="vae_healthy")
    expect(region(frame, "Findings")).to_contain_text("Nothing unusual in 480 steps")
    expect(region(frame, "Samples")).to_contain_text("Examples are recorded with findings")


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)])
@pytest.mark.parametrize("run", ["vae_nan", "vae_healthy"])
def test_panels_neither_overlap_nor_overflow(page: Page, open_tab: Open, size: tuple[int, int], run: str) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    frame = open_tab(f"&p.dgmtracker.run={run}")
    expect(region(frame, "Dynamics").locator("canvas.chart-base")).to_be_visible()
    boxes = {name: region(frame, name).bounding_box() for name in PANELS}
    for name, a in boxes.items():
        assert a is not None
        assert a["width"] >= 200
        assert a["height"] >= 36
        assert a["x"] >= 0
        assert a["x"] + a["width"] <= size[0] + 1
        assert a["y"] + a["height"] <= size[1] + 1
        for other, b in boxes.items():
            if other < name and b is not None:
                apart_x = a["x"] + a["width"] <= b["x"] + 1 or b["x"] + b["width"] <= a["x"] + 1
                apart_y = a["y"] + a["height"] <= b["y"] + 1 or b["y"] + b["height"] <= a["y"] + 1
                assert apart_x or apart_y, (name, other)
    tools = "[...document.querySelectorAll('.panel > header')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert frame.evaluate(tools) == 0


def test_a_failed_request_says_so_and_can_be_retried(page: Page, open_tab: Open) -> None:
    page.allowed_errors = "Failed to load resource"  # type: ignore[attr-defined]
    page.route("**/dynamics?*", lambda route: route.fulfill(status=500, content_type="text/plain", body="disk is gone"))
    frame = open_tab(NAN_RUN)
    expect(region(frame, "Dynamics").get_by_role("alert")).to_contain_text("disk is gone")
    page.unroute("**/dynamics?*")
    region(frame, "Dynamics").get_by_role("button", name="Retry").click()
    expect(region(frame, "Dynamics")).to_contain_text("neurons drawn")


def test_a_folder_without_recording_explains_how_to_record(page: Page, open_tab: Open, tmp_path: Path) -> None:
    with serve(tmp_path, page=page) as url:
        frame = open_tab("", url=url)
        expect(frame.get_by_role("main")).to_contain_text("from dgm_tb import DGMTrackerCallback")


@pytest.mark.parametrize("options", [("--load_fast=false",), ("--path_prefix=/some/prefix",)])
def test_the_story_works_in_every_mode_of_tensorboard(
    page: Page, open_tab: Open, logdir: Path, options: tuple[str, ...]
) -> None:
    with serve(logdir, *options, page=page) as url:
        frame = open_tab("", url=url)
        wait_for_selection(page, run="vae_nan", step="437", layer="to_logvar", sample="1203")
        expect(region(frame, "Dynamics")).to_contain_text("2 outliers")


def test_a_step_is_on_the_screen_within_seconds(page: Page, open_tab: Open, tmp_path: Path) -> None:
    segment = synthetic.write_run(tmp_path / "live", synthetic.vae_records(fails=False, ends=False))
    with serve(tmp_path, page=page) as url:
        frame = open_tab("", url=url)
        expect(frame.locator(".status")).to_contain_text("step 479")
        steps = np.arange(480, 500)
        arrays = {
            "steps": steps, "global_steps": steps, "values": np.full((20, 3), 5, np.float32),
            "present": np.ones((20, 3), np.uint8),
        }  # fmt: skip
        body = {"names": ["train_loss", "reconstruction", "kl"]}
        with segment.open("ab") as file:
            file.write(frame_record(encode(Record("loss", 480, 499, body, arrays, time.time()))))
        expect(frame.locator(".status")).to_contain_text("step 499", timeout=5_000)

"""The paper's story with a real training: finding, snapshot, layer, neuron, and the image that killed the training."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from serving import Open, serve
from test_tab import region, selection, wait_for_selection

from dgm_tb import open_run
from dgm_tb.demo.training import record
from dgm_tb.demo.vae_nan import ABNORMAL_INDEX
from dgm_tb.records import Finding


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Finding]]:
    """The demo's VAE, trained until its loss is NaN."""
    logdir = tmp_path_factory.mktemp("training")
    run = record("vae-nan", logdir, enable_progress_bar=False)
    return logdir, open_run(run).findings


@pytest.fixture(scope="module", params=["auto", "false"])
def address(training: tuple[Path, list[Finding]], request: pytest.FixtureRequest) -> Iterator[str]:
    """TensorBoard over the training, with each of its data loaders."""
    with serve(training[0], f"--load_fast={request.param}") as url:
        yield url


def test_from_the_finding_to_the_image(
    page: Page, open_tab: Open, address: str, training: tuple[Path, list[Finding]]
) -> None:
    finding = training[1][0]
    assert finding.samples[0] == ABNORMAL_INDEX
    frame = open_tab("&p.dgmtracker.step=3&p.dgmtracker.layer=decoder.0", url=address)
    region(frame, "Findings").get_by_role("button").filter(has_text="nonfinite").first.click()
    wait_for_selection(page, step=str(finding.step), layer=finding.module, sample=str(ABNORMAL_INDEX))
    assert selection(page)["neurons"].split(",")[0] == str(finding.neurons[0])
    expect(frame.get_by_role("slider")).to_have_value(str(finding.step))
    expect(region(frame, "Loss")).to_contain_text("NaN")
    expect(region(frame, "Dynamics")).to_contain_text(finding.module)
    expect(region(frame, "Dynamics")).to_contain_text("neurons not finite")
    neurons = region(frame, "Neurons")
    expect(neurons.locator("header")).to_contain_text(f"#{finding.neurons[0]}")
    expect(neurons).to_contain_text(f"attributed at step {finding.step}")
    neurons.get_by_role("button", name="abnormal", exact=True).click()
    expect(neurons).to_contain_text(f"attributed at step {finding.step}")
    abnormal = frame.get_by_role("button", name=f"abnormal example, dataset index {ABNORMAL_INDEX}", exact=False)
    expect(abnormal).to_have_attribute("aria-pressed", "true")


def test_every_layer_of_the_model_can_be_looked_at(page: Page, open_tab: Open, address: str) -> None:
    frame = open_tab("", url=address)
    wait_for_selection(page, sample=str(ABNORMAL_INDEX))
    for layer in ("encoder.0", "between.1", "decoder.5"):
        page.evaluate(f"location.hash = '#dgmtracker&p.dgmtracker.layer={layer}&p.dgmtracker.step=200'")
        expect(region(frame, "Dynamics").locator("header")).to_contain_text(layer)
        expect(region(frame, "Neurons").locator("header")).to_contain_text(layer)

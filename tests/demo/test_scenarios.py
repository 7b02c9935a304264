"""The scenarios ``gan`` and ``cnn``, and the table of all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dgm_tb import open_run
from dgm_tb.demo import SCENARIOS, cnn
from dgm_tb.demo.training import record


def test_table_of_scenarios_loads_no_torch() -> None:
    code = "import sys, dgm_tb.demo; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_builds_the_same_training_twice(name: str) -> None:
    first, second = SCENARIOS[name].build(), SCENARIOS[name].build()
    weights = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(bool((a == b).all()) for a, b in weights)
    batches = next(iter(first.batches)), next(iter(second.batches))
    assert all(bool((a == b).all()) for a, b in zip(*batches, strict=True))


def test_discriminator_overpowers_the_generator(tmp_path: Path) -> None:
    run = open_run(record("gan", tmp_path, enable_progress_bar=False))
    losses = {name: series.values for name, series in run.losses.items()}
    assert losses["loss_d"][-20:].mean() < 0.02 * losses["loss_d"][:5].mean()
    assert losses["loss_g"][-20:].mean() > 4 * losses["loss_g"][:5].mean()
    assert np.allclose(losses["loss_d"], losses["backward.0"])
    calls = [layer for layer in run.layers if layer.startswith("discriminator.0")]
    assert calls == ["discriminator.0", "discriminator.0@1", "discriminator.0@2"], "real, fake.detach(), fake"
    last = {
        name: run.layer_statistics(name, "gradient")["rms"].values[-20:].mean()
        for name in ("discriminator.0", "discriminator.0@1", "generator.0")
    }
    first = run.layer_statistics("discriminator.0@1", "gradient")["rms"].values[:5].mean()
    assert last["discriminator.0@1"] < 0.1 * first
    assert [(f.kind, f.module, f.modules) for f in run.findings] == [("gan_imbalance", "discriminator", ["generator"])]


def test_dead_block_hides_behind_its_skip_connection(tmp_path: Path) -> None:
    run = open_run(record("cnn", tmp_path, enable_progress_bar=False))
    dead = f"blocks.{cnn.DEAD_BLOCK}.activation"
    share = {
        name: run.layer_statistics(name)["zero_fraction"].values for name in run.layers if name.endswith("activation")
    }
    assert (share[dead] == 1.0).all()
    assert all(values.mean() < 0.95 for name, values in share.items() if name != dead)
    assert (run.dynamics(dead).values == 0).all()
    loss = run.losses["train_loss"].values
    assert loss[-30:].mean() < 0.35 * loss[0], "the training looks fine"
    assert [(f.kind, f.module, len(f.neurons)) for f in run.findings] == [("dead_units", dead, 24)]

"""Two processes train together: one recording, of the whole batch, that names the rank and the example of a NaN.

The trainings run in ``distributed_worker.py``; all that can share one pair of processes do.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distributed_worker import ABNORMAL, PLACE, SEED, UNEVEN, Net
from models import images
from test_captured_statistics import Oracle
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from training import Recording, fit, recordings

import dgm_tb
from dgm_tb.records import STATISTICS, Finding

WORKER = Path(__file__).with_name("distributed_worker.py")
TOGETHER = (
    "watched bare outlier_watched outlier_bare gan_watched gan_bare unused_watched unused_bare sharded "
    "sharded_overflow uneven overflow shuffled spoilt backward gan plain plain_sharded stopping mute late"
).split()


def _run(folder: Path, *scenarios: str) -> "subprocess.CompletedProcess[str]":
    free = {"MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED"}
    environment = {key: value for key, value in os.environ.items() if key not in free} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(folder), *scenarios]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of all scenarios that end well, and what the processes had to say."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = _run(folder, *TOGETHER)
    assert ended.returncode == 0, ended.stderr[-5000:]
    return folder, ended.stderr


def _saved(folder: Path, scenario: str, rank: int) -> dict[str, Any]:
    return dict(torch.load(folder / scenario / f"{rank}.pt", weights_only=False))


# -- numbers of the whole batch ----------------------------------------------------------------------------------------


class _UnevenNet(Net):
    """One process that has the batches of both ranks, and as loss the mean of theirs."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits, n = self.head(self.act(self.hidden(self.features(batch[0])))), len(UNEVEN[0][batch_idx])
        return 0.5 * (F.cross_entropy(logits[:n], batch[1][:n]) + F.cross_entropy(logits[n:], batch[1][n:]))


def _single(folder: Path, scenario: str) -> Oracle:
    """The same training in one process, observed the slow way."""
    L.seed_everything(SEED, verbose=False)
    oracle = Oracle()
    of_ranks = UNEVEN if scenario == "uneven" else [[drawn[k : k + 4] for k in range(0, 24, 4)] for drawn in _drawn()]
    batches = [first + second for first, second in zip(*of_ranks, strict=True)]
    model = _UnevenNet() if scenario == "uneven" else Net()
    fit(model, DataLoader(images(), batch_sampler=batches), folder, others=(oracle,))
    return oracle


def _drawn() -> list[list[int]]:
    """What Lightning's sampler draws on each rank; it shuffles whatever the loader says."""
    return [list(DistributedSampler(images(), 2, rank, shuffle=True, seed=SEED)) for rank in (0, 1)]


@pytest.mark.parametrize("scenario", ["watched", "uneven", "sharded"])
def test_every_statistic_is_that_of_one_process_with_the_whole_batch(
    scenario: str, together: tuple[Path, str], tmp_path: Path
) -> None:
    oracle, recording = _single(tmp_path, scenario), Recording.of(together[0] / scenario)
    assert {layer.name for layer in recording.graph.layers} == {"features.0", "features.1", "hidden", "act", "head"}
    assert len(oracle.steps) == len(recording.steps()) == (3 if scenario == "uneven" else 6)
    for name, quantity in oracle.steps[0]:
        for statistic in STATISTICS[quantity] if name != "features.2" else ():
            want = np.stack([step[name, quantity][statistic.name] for step in oracle.steps])
            got = recording.dynamics(name, quantity, f"{statistic.name}/{statistic.windows[0]}")
            close = {"rtol": 1e-3, "atol": 2e-5 * np.abs(want).max(), "err_msg": f"{name} {quantity} {statistic.name}"}
            np.testing.assert_allclose(got, want, **close)
            layers = np.array([layers[name, quantity][statistic.name] for layers in oracle.layers])
            np.testing.assert_allclose(recording.layer_statistic(name, quantity, statistic.name), layers, **close)


@pytest.mark.parametrize("scenario", ["watched", "uneven", "unused_watched"])
def test_losses_are_the_mean_over_the_ranks(scenario: str, together: tuple[Path, str]) -> None:
    folder, _ = together
    of_ranks = torch.tensor([_saved(folder, scenario, rank)["losses"] for rank in (0, 1)])
    assert not torch.equal(of_ranks[0], of_ranks[1])
    losses = Recording.of(folder / scenario).losses()["loss"]
    np.testing.assert_allclose(list(losses.values()), of_ranks.mean(0), rtol=1e-6)


def test_there_is_one_recording_and_it_tells_of_the_ranks(together: tuple[Path, str]) -> None:
    folder, _ = together
    for scenario in TOGETHER:
        found = recordings(folder / scenario)
        assert len(found) == (0 if scenario.endswith("bare") else 1), scenario
        for place in found:
            (facts,) = Recording.read(place).kind("recording")
            assert (facts.body["rank"], facts.body["world_size"]) == (0, 2)
    run = dgm_tb.open_run(folder / "watched")
    assert run.dynamics("hidden").values.shape == (8, 6)


@pytest.mark.parametrize("scenario", ["watched", "outlier_watched", "gan_watched", "unused_watched"])
def test_training_is_the_same_bit_for_bit(scenario: str, together: tuple[Path, str]) -> None:
    folder, _ = together
    for rank in (0, 1):
        watched, bare = _saved(folder, scenario, rank), _saved(folder, scenario.replace("watched", "bare"), rank)
        assert len(watched["losses"]) == len(bare["losses"]) > 0
        assert all(torch.equal(one, other) for one, other in zip(watched["losses"], bare["losses"], strict=True))
        assert watched["weights"].keys() == bare["weights"].keys() != set()
        assert all(torch.equal(value, bare["weights"][name]) for name, value in watched["weights"].items())
    found = Recording.of(folder / scenario).findings
    kinds = [finding.kind for finding in found if finding.severity != "info"]
    assert kinds == ([] if scenario == "watched" else ["outlier_sample"]), "a step was run again"


# -- who is to blame ---------------------------------------------------------------------------------------------------


def _assert_rank_1_is_blamed(recording: Recording, step: int, position: int) -> Finding:
    (finding,) = [finding for finding in recording.findings if finding.kind == "nonfinite"]
    assert finding.step == step
    assert finding.samples == [ABNORMAL]
    assert finding.evidence["rank"] == 1
    assert finding.evidence["sample_index"] == "dataset"
    assert finding.evidence["batch_positions"] == [position]
    assert finding.summary.startswith("rank 1: ")
    assert {record.body["id"] for record in recording.kind("finding")} <= {"r1f1", "r1f2"}
    return finding


PLANTED = {  # step of the first NaN, module
    "overflow": (2, "hidden"),
    "spoilt": (3, "log_variance1"),
    "backward": (2, "net.3"),
    "gan": (2, "discriminator.0"),
    "sharded_overflow": (2, "hidden"),
    "plain": (2, "1"),
    "plain_sharded": (2, "1"),
}


@pytest.mark.parametrize("scenario", PLANTED)
def test_a_nan_is_blamed_once_on_its_rank_example_and_layer(scenario: str, together: tuple[Path, str]) -> None:
    step, position = divmod(PLACE, 4)
    recording = Recording.of(together[0] / scenario)
    finding = _assert_rank_1_is_blamed(recording, step, position)
    assert (finding.last_step, finding.module) == PLANTED[scenario]
    (ring,) = [record for record in recording.kind("ring") if record.body["reason"] == "finding r1f1"]
    assert ring.body["rank"] == 1
    assert ring.arrays["indices"][list(ring.arrays["steps"]).index(step), position] == ABNORMAL
    assert ring.arrays["activation"].shape[2] == recording.graph.layers[-1].offset + recording.graph.layers[-1].neurons
    if scenario != "spoilt":
        (samples,) = recording.kind("samples")
        assert samples.body["rank"] == 1
        assert samples.body["examples"][0]["index"] == ABNORMAL
        of_finding = {r.body["samples"] for r in recording.kind("contribution") if r.body["finding"] == "r1f1"}
        assert of_finding == (set() if "sharded" in scenario else {"batch", "abnormal", "normal"})


def test_indices_are_those_of_the_dataset_under_lightnings_own_sampler(together: tuple[Path, str]) -> None:
    drawn = _drawn()
    step, position = divmod(drawn[1].index(ABNORMAL), 4)
    recording = Recording.of(together[0] / "shuffled")
    _assert_rank_1_is_blamed(recording, step, position)
    by_rank = {record.body.get("rank", 0): record.arrays for record in recording.kind("ring")}
    for rank, arrays in by_rank.items():
        known = [drawn[rank][4 * step : 4 * step + 4] for step in arrays["steps"]]
        np.testing.assert_array_equal(arrays["indices"][:, :4], known)


def test_findings_are_told_on_rank_0(together: tuple[Path, str]) -> None:
    told = [_saved(together[0], "overflow", rank)["findings"] for rank in (0, 1)]
    recorded = [finding.to_json() for finding in Recording.of(together[0] / "overflow").findings]
    assert told == [recorded, []]


def test_all_ranks_stop_after_the_same_step(together: tuple[Path, str]) -> None:
    n_steps = [len(_saved(together[0], "stopping", rank)["losses"]) for rank in (0, 1)]
    assert n_steps[0] == n_steps[1] < 2999


@pytest.mark.parametrize(("scenario", "error"), [("raises", "ValueError"), ("anomaly", "returned nan values")])
def test_the_finding_of_a_rank_that_raises_gets_to_the_disk(scenario: str, error: str, tmp_path: Path) -> None:
    ended = _run(tmp_path, scenario)
    assert ended.returncode != 0
    assert error in ended.stderr
    recording = Recording.of(tmp_path / scenario)
    finding = _assert_rank_1_is_blamed(recording, *divmod(PLACE, 4))
    assert finding.module == {"raises": "log_variance1", "anomaly": "net.3"}[scenario]
    assert recording.kind("samples")[0].body["rank"] == 1
    assert "exception" in {record.body["reason"] for record in recording.kind("ring")}


def test_a_spawned_process_that_raises_leaves_a_whole_recording(tmp_path: Path) -> None:
    ended = _run(tmp_path, "spawned")  # Lightning calls no callback in a process that it has spawned itself
    assert "returned nan values" in ended.stderr
    recording = Recording.of(tmp_path / "spawned")
    (finding,) = recording.findings
    assert (finding.kind, finding.samples, finding.module) == ("nonfinite", [ABNORMAL], "net.3")
    assert recording.end["reason"] == "exception"
    assert "rank" not in finding.evidence


# -- ranks that can't talk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["mute", "late"])
def test_rank_0_records_its_own_numbers_if_the_others_are_not_heard(scenario: str, together: tuple[Path, str]) -> None:
    folder, said = together
    recording = Recording.of(folder / scenario)
    own = [float(loss) for loss in _saved(folder, scenario, 0)["losses"]]
    np.testing.assert_allclose(list(recording.losses()["loss"].values()), own, rtol=1e-6)
    assert len(recording.dynamics("hidden", "activation", "mean/mean")) == 6
    assert recording.notes == ["steps from 0 on are without rank 1: nothing came of them in time"]
    assert recording.end["reason"] == "finished"
    assert said.count("the ranks can't talk any more, rank 0 records its own numbers only") == 1

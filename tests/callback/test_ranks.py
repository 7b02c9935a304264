"""What several ranks say about one training is put together right; without any process but this one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from dgm_tb.callback.alone import _local_batch_norm, _stand_ins
from dgm_tb.callback.distributed.agreement import SharedGovernor, StopPromise, StopProposal
from dgm_tb.callback.distributed.docket import INNOCENT_SECONDS, WAIT_SECONDS, Case, Docket
from dgm_tb.callback.distributed.letters import case_in, case_letter, placed_record, rows_letter, shares_in
from dgm_tb.callback.distributed.mailbox import CHUNK_BYTES, Mailbox, pack, unpack
from dgm_tb.callback.distributed.merging import columns_in, merge, merged_activation, merged_rms, moved, shares_of
from dgm_tb.callback.slots import Slot
from dgm_tb.callback.step_row import StepRow
from dgm_tb.callback.windows import Row
from dgm_tb.records import Finding, Record


def _slots(**neurons: int) -> list[Slot]:
    slots: list[Slot] = []
    for name, n in neurons.items():
        offset = slots[-1].offset + slots[-1].neurons if slots else 0
        slots.append(Slot(name, name, "Linear", n, offset, True, name.startswith("relu"), (4, n)))
    return slots


def _row(values: torch.Tensor, gradient: torch.Tensor, pivot: torch.Tensor | None = None) -> StepRow:
    """The sums of values ``[examples, neurons]`` of a single slot."""
    centered = values if pivot is None else values - pivot
    sums = [centered.sum(0), centered.square().sum(0), values.amin(0), values.amax(0), (values != 0).float().sum(0)]
    pivots = {} if pivot is None else {0: pivot}
    return StepRow(torch.stack(sums), [len(values)], gradient.square().sum(0), [len(gradient)], {}, pivots)


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 300.0, -1e3])
def test_merged_statistics_are_those_of_all_values(offset: float) -> None:
    rng = torch.Generator().manual_seed(3)
    slots = _slots(relu=6)
    parts = [torch.rand(n, 6, generator=rng).sub(0.3).relu() + offset for n in (5, 1, 12)]
    gradients = [torch.randn(p.shape, generator=rng) for p in parts]
    pivots = [parts[0].mean(0) + rank if offset else None for rank in range(3)]  # each rank has its own
    raw = [_row(*of_rank) for of_rank in zip(parts, gradients, pivots, strict=True)]
    rows = [Row(7, 7, {"loss": float(rank)}, of_rank) for rank, of_rank in enumerate(raw)]
    losses, merged = merge([shares_of([row], slots)[0] for row in rows], slots, 3)
    whole = torch.cat(parts).double()
    want = [whole.mean(0), whole.std(0, correction=0), whole.amin(0), whole.amax(0), (whole == 0).double().mean(0)]
    for got, statistic, name in zip(merged["activation"], want, ("mean", "std", "min", "max", "zeros"), strict=True):
        np.testing.assert_allclose(got, statistic, rtol=2e-4, atol=1e-6, err_msg=name)
    rms = torch.cat(gradients).square().mean(0).sqrt() / 3
    np.testing.assert_allclose(merged["gradient"][0], rms, rtol=1e-5)
    assert losses == {"loss": 1.0}


def test_neurons_that_only_some_ranks_have_called_are_theirs_alone() -> None:
    values = np.stack([np.full((5, 2), np.nan), np.tile([[1.0], [2.0], [-3.0], [4.0], [0.5]], (1, 2))])
    counts = np.array([[0.0, 0.0], [8.0, 0.0]])
    merged = merged_activation(values, counts, np.array([True, True]))
    np.testing.assert_array_equal(merged[:, 0], [1, 2, -3, 4, 0.5])
    assert np.isnan(merged[:, 1]).all()
    rms = merged_rms(np.array([[2.0, np.nan], [np.nan, np.nan]]), np.array([[3.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(rms, [2.0, np.nan])


def test_a_nan_of_one_rank_stays_visible_in_the_merged_row() -> None:
    slots = _slots(fc=2)
    rows = [Row(0, 0, {"loss": x}, _row(torch.tensor([[x, 1.0], [2.0, 3.0]]), torch.ones(2, 2))) for x in (1.0, np.nan)]
    losses, merged = merge([shares_of([row], slots)[0] for row in rows], slots, 2)
    assert np.isnan(merged["activation"][:4, 0]).all()
    np.testing.assert_allclose(merged["activation"][:4, 1], [2, 1, 1, 3])
    assert np.isnan(losses["loss"])


def test_slots_are_matched_by_name_whatever_their_order() -> None:
    here = _slots(a=2, b=3, c=1)
    there = [("c", 1), ("other", 4), ("b", 3), ("a", 5)]
    columns = columns_in(here, there)
    assert columns.tolist() == [5, -1, -1, -1, -1, 2, 3, 4, -1, -1, -1, -1, -1]
    np.testing.assert_array_equal(moved(np.arange(13.0), columns, 6), [np.nan, np.nan, 5, 6, 7, 0])


# -- letters ----------------------------------------------------------------------------------------------------------


def test_rows_come_out_of_a_letter_as_they_went_in() -> None:
    slots = _slots(fc=3)
    observed = [_row(torch.rand(4, 3), torch.rand(4, 3)) for _ in range(2)]
    rows = [
        Row(4, 4, {"loss": 0.5, "bad": float("nan")}, observed[0], np.ones((3, 3))),
        Row(5, 5, {"loss": float("inf")}),
        Row(6, 6, {}, observed[1]),
    ]
    body, arrays = unpack(rows_letter(rows, slots, 0, with_weights=True))
    assert body["slots"] == [["fc", 3]]
    shares = shares_in(body, arrays, [("fc", 3)])
    for share, want in zip(shares.values(), shares_of(rows, slots), strict=True):
        assert share.losses == pytest.approx(want.losses, nan_ok=True)
        np.testing.assert_array_equal(share.activation, want.activation)
        np.testing.assert_array_equal(share.counts, want.counts)
        np.testing.assert_array_equal(share.gradient, want.gradient)
    assert list(shares) == [4, 5, 6]
    assert [share.weights is None for share in shares.values()] == [False, True, True]


def _finding(kind: str = "nonfinite", step: int = 3) -> Finding:
    return Finding(kind, "error", step, step, step, "fc", "a sentence", evidence={"ratio": float("inf")})


def test_a_case_comes_out_of_a_letter_as_it_went_in() -> None:
    finding = _finding()
    record = Record("finding", 3, 3, {"id": "r1f1", "finding": finding.to_json()})
    ring = {
        "steps": np.arange(2),
        "activation": np.random.default_rng(1).random((2, 5, 3), np.float32),
        "gradient": np.ones((2, 3), np.float32),
        "examples": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
        "indices": np.zeros((2, 3), np.int64),
    }
    evidence = Record("ring", 2, 3, {"reason": "x", "losses": []}, ring)
    case = Case(1, 3, (0.0, 3.0, float("inf")), [finding], [record, evidence])
    body, arrays = unpack(case_letter(case, _slots(b=1, a=2), 0))
    got = case_in(1, body, arrays)
    assert (got.rank, got.step, got.claim) == (1, 3, case.claim)
    assert [f.to_json() for f in got.findings] == [finding.to_json()]
    here = _slots(a=2, b=1, more=2)
    placed = placed_record(got.records[1], 1, [("b", 1), ("a", 2)], here)
    assert placed.body["rank"] == 1
    np.testing.assert_array_equal(placed.arrays["activation"][..., :3], ring["activation"][..., [1, 2, 0]])
    assert np.isnan(placed.arrays["activation"][..., 3:]).all()
    np.testing.assert_array_equal(placed.arrays["examples"][:, :2], ring["examples"][:, [1, 0]])


def test_letters_larger_than_a_chunk_arrive_whole_and_in_order() -> None:
    store = HashStore()
    boxes = [Mailbox(store, rank, 3) for rank in range(3)]
    large = np.random.default_rng(0).integers(0, 255, 3 * CHUNK_BYTES + 5).astype(np.uint8)
    boxes[2].post(pack({"n": 1}, {"x": large}))
    boxes[2].post(pack({"n": 2}, {}))
    boxes[1].post(pack({"n": 3}, {}))
    letters = [(rank, *unpack(letter)) for rank, letter in boxes[0].collect()]
    assert [(rank, body["n"]) for rank, body, _ in letters] == [(1, 3), (2, 1), (2, 2)]
    np.testing.assert_array_equal(letters[1][2]["x"], large)
    assert boxes[0].collect() == []
    boxes[0].confirm(2, 2)
    assert (boxes[2].n_confirmed(), boxes[1].n_confirmed()) == (2, 0)
    boxes[0].announce({"cadence": 2})
    assert boxes[1].notices() == boxes[2].notices() == [{"cadence": 2}]
    assert boxes[1].notices() == []


# -- which finding is right --------------------------------------------------------------------------------------------

GUILTY, INNOCENT = 0.0, 1.0


def _case(rank: int, step: int, guilt: float, *claim: float, arrived: float = 0.0) -> Case:
    return Case(rank, step, (guilt, step, *claim), [_finding(step=step)], arrived=arrived)


def test_the_rank_where_a_nan_began_is_believed_once_all_have_spoken() -> None:
    docket = Docket(range(3))
    docket.add(_case(0, 5, INNOCENT))
    docket.reached(2, 4)
    docket.add(guilty := _case(1, 5, GUILTY))
    assert docket.decide(0.1) == []
    docket.reached(2, 5)
    assert docket.decide(0.2) == [guilty]
    docket.add(_case(2, 6, INNOCENT))
    docket.add(_case(0, 7, GUILTY))
    assert docket.decide(99.0) == [], "the NaN of one rank in the weights of all"
    docket.add(later := _case(0, 30, GUILTY))
    assert docket.decide(99.0, is_last=True) == [later]


def test_a_rank_with_a_cause_waits_shortly_and_one_without_long() -> None:
    docket = Docket(range(2))
    docket.add(innocent := _case(0, 5, INNOCENT, arrived=10.0))
    assert docket.decide(10.0 + INNOCENT_SECONDS - 1) == []
    assert docket.decide(10.0 + INNOCENT_SECONDS) == [innocent]
    docket.add(guilty := _case(1, 50, GUILTY, arrived=100.0))
    assert docket.decide(100.0 + WAIT_SECONDS - 0.1) == []
    assert docket.decide(100.0 + WAIT_SECONDS) == [guilty]


def test_a_late_cause_overrules_a_guess() -> None:
    docket = Docket(range(2))
    docket.add(_case(0, 5, INNOCENT))
    assert len(docket.decide(0.0, is_last=True)) == 1
    docket.add(guilty := _case(1, 5, GUILTY))
    docket.reached(0, 9)
    assert docket.decide(1.0) == [guilty]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_among_two_causes_the_earlier_step_then_the_better_claim_wins(order: tuple[int, int]) -> None:
    weak, strong = _case(0, 5, GUILTY, 1, 3, -20), _case(1, 5, GUILTY, 0, 0, -900)
    docket = Docket(range(2))
    for number in order:
        docket.add((weak, strong)[number])
    assert docket.decide(0.0) == [strong]
    earlier, later = _case(0, 40, GUILTY, 1, 3, -20), _case(1, 41, GUILTY, 0, 0, -900)
    for number in order:
        docket.add((earlier, later)[number])
    assert docket.decide(0.0) == [earlier]


def test_a_spike_that_another_rank_has_explained_is_no_news() -> None:
    docket = Docket(range(2))
    outlier = Case(1, 5, findings=[_finding("outlier_sample", 5)])
    echo = Case(0, 8, findings=[_finding("loss_spike", 6)])
    own = Case(0, 30, findings=[_finding("loss_spike", 28)])
    for case in (outlier, echo, own, Case(1, 30, findings=[_finding("loss_spike", 28)])):
        docket.add(case)
    assert docket.decide(0.0) == [outlier, own]


# -- agreements --------------------------------------------------------------------------------------------------------


def test_all_ranks_change_the_cadence_at_the_same_step() -> None:
    notices: list[Any] = []
    leader, follower = SharedGovernor(1, 0.05, notices.append), SharedGovernor(1, 0.05, None)
    seen: list[tuple[bool, bool]] = []
    for step in range(3000):
        seen.append((leader.is_due(step), follower.is_due(step)))
        assert not follower.account(0.5, 1.0)
        leader.account(0.5, 1.0)
        for notice in notices:
            assert notice["since"] > step + 4
            follower.follow(notice["since"], notice["cadence"])
        notices.clear()
    assert all(one == other for one, other in seen)
    assert sum(one for one, _ in seen[-512:]) < 16, "half of the time is far above the limit"


def _stop(*, promises: bool, n_steps: int = 200) -> tuple[list[int], list[int]]:
    """Steps after which rank 0 and rank 1 stop."""
    notices: list[Any] = []
    proposal, promise = StopProposal([1], notices.append, lambda: 8), StopPromise()
    proposal.is_wanted = True
    stops: tuple[list[int], list[int]] = ([], [])
    for step in range(n_steps):
        stops[0].extend([step] if proposal.end_step(step) else [])
        for notice in notices:
            if "stop_after" in notice and promises and promise.propose(notice["stop_after"]):
                proposal.promised(1, notice["stop_after"])
            if "decided" in notice:
                promise.decide(notice["decided"], notice["is_on"])
        notices.clear()
        stops[1].extend([step] if promise.end_step(step) else [])
        if stops[0]:
            break
    return stops


def test_all_ranks_stop_after_the_same_step_or_none_does() -> None:
    first, second = _stop(promises=True)
    assert first == second == [8]
    assert _stop(promises=False) == ([], [])


def test_a_promise_is_not_given_for_a_step_that_is_over() -> None:
    promise = StopPromise()
    promise.end_step(5)
    assert not promise.propose(5)
    assert promise.propose(6)
    promise.lose()
    assert not promise.end_step(6), "nobody decides any more, and nobody waits"


# -- a step again, on one rank alone -----------------------------------------------------------------------------------


def test_stand_ins_share_the_values_and_keep_the_gradients_off() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 4), "head": nn.Linear(4, 2)})
    before = dict(model.named_parameters())
    fired: list[str] = []
    for name, parameter in before.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    x = torch.rand(5, 2, 3)
    with _stand_ins(model):
        model["head"](model["lstm"](x)[0]).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
    assert fired == []
    assert all(parameter.grad is None for parameter in before.values())
    assert all(now is then for now, then in zip(model.parameters(), before.values(), strict=True))
    model["head"](model["lstm"](x)[0]).sum().backward()
    assert sorted(fired) == sorted(before)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=0)


def test_synchronised_batch_normalisation_takes_this_ranks_examples() -> None:
    torch.manual_seed(0)
    plain, model = nn.BatchNorm2d(3), nn.SyncBatchNorm(3)
    model.load_state_dict(plain.state_dict())
    x = torch.rand(4, 3, 5, 5)
    with _local_batch_norm(model):
        torch.testing.assert_close(model(x), plain(x))
        assert torch.equal(model.running_mean, torch.zeros(3)), "no second update"
        torch.testing.assert_close(model.eval()(x), nn.BatchNorm2d(3).eval()(x))
    assert "forward" not in vars(model)

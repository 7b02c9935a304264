"""A plain loop's recorder keeps to training, leaves nothing behind, and tells of mistakes, its own and the loop's."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops import LOOPS, VAE, our_warnings, run
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter
from training import Recording, recordings

import dgm_tb
from dgm_tb.callback.capture import Capture
from dgm_tb.callback.draws import MAX_LOADERS, Draws
from dgm_tb.callback.plain import LoopRecorder
from dgm_tb.callback.recorder import Recorder
from dgm_tb.callback.reductions import reduce_activation

ABNORMAL = 21


# -- what is no training -----------------------------------------------------------------------------------------------


def _validate(how: str, model: nn.Module, recorder: Any) -> None:
    x = torch.full((5, 64), 100.0)
    context: Any = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(how, torch.enable_grad)
    model.train(how in ("no_grad", "paused"))
    with context():
        if how == "paused" and recorder is not None:
            with recorder.paused():
                model(x)[0].sum().backward()
            model.zero_grad()
        else:
            model(x)
    model.train()


def _assert_same(folder: Path, other: Path) -> None:
    one, two = Recording.of(folder), Recording.of(other)
    assert one.losses() == two.losses()
    assert one.graph.edges == two.graph.edges
    for record, expected in zip(one.kind("dynamics"), two.kind("dynamics"), strict=True):
        np.testing.assert_array_equal(record.arrays["values"], expected.arrays["values"])


@pytest.mark.parametrize("how", ["no_grad", "inference", "eval", "paused"])
def test_validation_between_steps_leaves_no_trace(how: str, tmp_path: Path) -> None:
    def around(step: int, models: Any, recorder: Any) -> None:
        if step % 3 == 2:
            with torch.random.fork_rng():
                _validate(how, models[""], recorder)

    with our_warnings() as texts:
        run("vae", tmp_path / "with", around=around)
    assert texts == []
    run("vae", tmp_path / "without")
    _assert_same(tmp_path / "with", tmp_path / "without")


@pytest.mark.parametrize("how", ["inference", "eval", "paused"])
def test_validation_within_a_step_leaves_no_trace(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("vae", tmp_path / "without")
    make, step = LOOPS["vae"]

    def with_validation(batch: Any, models: Any, optimizers: Any, outcome: Any) -> Any:
        losses = step(batch, models, optimizers, outcome)
        with torch.random.fork_rng():
            _validate(how, models[""], outcome.recorder)
        return losses

    monkeypatch.setitem(LOOPS, "vae", (make, with_validation))
    run("vae", tmp_path / "with")
    _assert_same(tmp_path / "with", tmp_path / "without")


def test_a_model_that_is_always_in_evaluation_mode_is_recorded(tmp_path: Path) -> None:
    run("vae", tmp_path, around=lambda step, models, recorder: models[""].eval())
    assert len(Recording.of(tmp_path).dynamics("mean", "activation", "mean/mean")) == 12


# -- nothing else changes ----------------------------------------------------------------------------------------------


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = [dict(vars(kind)) for kind in (DataLoader, _BaseDataLoaderIter, GradScaler)]
    hooks = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    models = [VAE(), VAE()]
    first, second = (dgm_tb.record(model, tmp_path / str(n)) for n, model in enumerate(models))
    for recorder, model in ((first, models[0]), (second, models[1])):
        model(torch.rand(3, 64))[0].sum().backward()
        recorder.step(1.0)
    first.close()  # in another order than that of their start
    second.close()
    assert [dict(vars(kind)) for kind in (DataLoader, _BaseDataLoaderIter, GradScaler)] == before
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == hooks
    for model in models:
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert [Recording.of(tmp_path / str(n)).end["reason"] for n in (0, 1)] == ["finished"] * 2
    first.close()
    first.step(1.0)


class _Token(nn.Module):
    """Gives its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 64))

    def forward(self) -> Tensor:
        return self.weight


def test_a_parameter_that_a_module_gives_back_keeps_no_hook(tmp_path: Path) -> None:
    model = nn.ModuleDict({"token": _Token(), "head": nn.Linear(64, 3)})
    with dgm_tb.record(model, tmp_path, window_steps=1) as recorder:
        for number in range(3):
            loss = (number + 1) * model["head"](model["token"]()).sum()
            loss.backward()
            recorder.step(loss)
            assert not model["token"].weight._backward_hooks
    gradients = Recording.of(tmp_path).dynamics("token", "gradient", "rms/mean")
    expected = np.sqrt(np.mean(np.square([model["head"].weight.detach().sum(0).numpy()]), 0))
    np.testing.assert_allclose(gradients, [expected, 2 * expected, 3 * expected], 1e-5)


def test_a_recorded_model_can_be_copied_and_pickled(tmp_path: Path) -> None:
    model = VAE()
    with dgm_tb.record(model, tmp_path) as recorder:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for copied in copies:
            copied(torch.rand(3, 64))
        model(torch.rand(3, 64))[0].sum().backward()
        recorder.step(1.0)
    assert not [layer.name for layer in Recording.of(tmp_path).graph.layers if "@" in layer.name]


def test_no_graph_of_a_past_step_is_kept(tmp_path: Path) -> None:
    alive: list[Any] = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark = VAE()
            alive.append(weakref.ref(ctx.mark))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    model = VAE()
    with dgm_tb.record(model, tmp_path) as recorder:
        for _ in range(3):
            h = Marked.apply(model.encoder(torch.rand(3, 64)))
            loss = model.decoder(model.mean(h)).sum()
            loss.backward()
            recorder.step(loss)
            del h, loss
            gc.collect()
            assert [mark() for mark in alive] == [None] * len(alive)


class _OtherDevice(torch.overrides.TorchFunctionMode):
    """Stands for ``with torch.device(...)``: entered and left by the user in the middle of a step."""

    n_calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_calls += 1
        return func(*args, **(kwargs or {}))


def test_the_users_own_modes_are_left_in_their_own_order(tmp_path: Path) -> None:
    model, mode = VAE(), _OtherDevice()
    with dgm_tb.record(model, tmp_path) as recorder:
        with mode:
            y = model(torch.rand(3, 64))[0]  # the first step is traced by a mode, too
        n_calls = mode.n_calls
        loss = y.square().mean()
        assert mode.n_calls == n_calls > 0
        loss.backward()
        with mode:
            recorder.step(loss)
            torch.zeros(1).square()
            assert mode.n_calls > n_calls
    assert torch.overrides._get_current_function_mode_stack() == []
    assert "mean" in {node.op for node in Recording.of(tmp_path).graph.nodes}


# -- mistakes, ours and theirs -----------------------------------------------------------------------------------------


def _fails(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("owner", "method"),
    [(Recorder, "__init__"), (Recorder, "begin_step"), (Recorder, "end_step"), (Capture, "begin"), (Draws, "take"),
     (Draws, "_note"), (LoopRecorder, "_note_call")],
    ids=lambda item: getattr(item, "__name__", item),
)  # fmt: skip
def test_an_error_of_ours_warns_and_training_goes_on(
    owner: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = run("vae")
    monkeypatch.setattr(owner, method, _fails)
    with our_warnings() as texts:
        watched = run("vae", tmp_path)
    assert watched.losses == bare.losses
    assert len(texts) == 1
    assert "a bug" in texts[0]
    assert "training goes on" in texts[0]


class _Scaling(torch.optim.SGD):
    """Gives its closure an argument."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        loss = closure(2.0, is_first=True)
        super().step()
        return loss


def test_a_closure_gets_the_arguments_that_its_optimizer_gives_it(tmp_path: Path) -> None:
    model, got = nn.Linear(3, 1), []
    optimizer = _Scaling(model.parameters(), 0.1)

    def closure(factor: float, *, is_first: bool) -> Tensor:
        got.append((factor, is_first))
        loss: Tensor = factor * model(torch.rand(5, 3)).square().mean()
        loss.backward()
        return loss

    with dgm_tb.record(model, tmp_path) as recorder:
        recorder.step(optimizer.step(closure))
    assert got == [(2.0, True)]
    assert len(Recording.of(tmp_path).losses()) == 1


def test_a_step_that_could_not_be_observed_has_no_numbers_of_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with our_warnings() as texts, dgm_tb.record(model, tmp_path, window_steps=1) as recorder:
        for step in range(2):
            monkeypatch.setattr("dgm_tb.callback.capture.reduce_activation", _fails if step else reduce_activation)
            loss = model(torch.rand(5, 3)).mean()
            loss.backward()
            recorder.step(loss)
        rows = [step.row for step in recorder._recorder.ring.steps]  # type: ignore[union-attr]
    assert len(texts) == 2
    assert [row.counts for row in rows] == [[5, 5], [0, 0]]
    assert not rows[1].activation.any()


class _Seldom(nn.Module):
    """Calls its second layer in the first two steps only; means are large beside standard deviations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 2)
        nn.init.constant_(self.first.bias, 1000.0)
        self.n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        y: Tensor = self.first(x)
        return self.second(y) if self.n_calls <= 2 else y


def test_what_is_subtracted_is_the_mean_if_a_step_is_looked_into_late(tmp_path: Path) -> None:
    model = _Seldom()
    with dgm_tb.record(model, tmp_path) as recorder:
        recorder._recorder.look_late()  # type: ignore[union-attr]
        for _ in range(4):
            recorder.step(model(torch.rand(5, 3)).mean())
        pivots = [slot.pivot for slot in recorder._recorder.capture.slots]  # type: ignore[union-attr]
    first = model.first(torch.full((3,), 0.5))
    for pivot, mean in zip(pivots, (first, model.second(first)), strict=True):
        torch.testing.assert_close(pivot, mean.detach(), rtol=0, atol=3.0)


def test_a_loss_is_noted_as_it_is_now(tmp_path: Path) -> None:
    with dgm_tb.record(nn.Linear(3, 1), tmp_path) as recorder:
        vitals, loss = recorder._recorder.vitals, torch.tensor(2.0)  # type: ignore[union-attr]
        vitals.note_loss("loss", loss)
        loss.mul_(100)
        assert vitals.read()[0] == {"loss": 2.0}


def test_batches_of_loaders_of_the_past_are_not_kept(tmp_path: Path) -> None:
    model, batches = nn.Linear(3, 1), []
    with dgm_tb.record(model, tmp_path) as recorder:
        for _ in range(2 * MAX_LOADERS):
            for x in DataLoader(torch.rand(4, 3), 2):
                recorder.step(model(x).mean())
                batches.append(weakref.ref(x))
            del x
        gc.collect()
        kept = sum(batch() is not None for batch in batches)
        assert kept <= 2 * (MAX_LOADERS + 1), "an address that is used again may count for one loader more"


def test_calls_in_the_wrong_order_are_told_once(tmp_path: Path) -> None:
    model = VAE()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with our_warnings() as texts, dgm_tb.record(model, tmp_path) as recorder:
        for _ in range(3):
            loss = model(torch.rand(3, 64))[0].square().mean()
            recorder.step(loss)
            loss.backward()
            optimizer.step()
    assert len(texts) == 2
    assert "loss.backward() ran after recorder.step" in texts[0]
    assert "optimizer.step() ran after recorder.step" in texts[1]
    assert all("end of the loop's body" in text for text in texts)


def test_a_model_that_is_not_called_is_told_and_losses_are_recorded(tmp_path: Path) -> None:
    with our_warnings() as texts, dgm_tb.record(VAE(), tmp_path) as recorder:
        for number in range(3):
            recorder.step({"loss": number, "odd": [number]})
    assert len(texts) == 2
    assert "no module of the model was called" in texts[0]
    assert "odd is list" in texts[1]
    assert Recording.of(tmp_path).losses() == {"loss": {0: 0.0, 1: 1.0, 2: 2.0}}


def test_a_loop_without_a_single_step_is_told(tmp_path: Path) -> None:
    model = VAE()
    with our_warnings() as texts, dgm_tb.record(model, tmp_path):
        model(torch.rand(3, 64))
    assert len(texts) == 1
    assert "recorder.step was never called" in texts[0]


@pytest.mark.parametrize(
    ("model", "options", "error", "accepted"),
    [
        (VAE, {}, TypeError, "torch.nn.Module"),
        ({}, {}, ValueError, "at least one"),
        ({"a.b": VAE()}, {}, ValueError, "identifier"),
        ({"training": VAE()}, {}, ValueError, "identifier"),
        ({"forward": VAE()}, {}, ValueError, "identifier"),
        (VAE(), {"every_n_steps": 0}, ValueError, "at least 1"),
        (VAE(), {"resume_step": -1}, ValueError, "at least 0"),
        (VAE(), {"every_n_step": 2}, TypeError, "every_n_steps"),
    ],
    ids=lambda item: str(item) if isinstance(item, dict) and "model" not in item else "",
)
def test_wrong_arguments_raise_and_say_what_is_accepted(
    model: Any, options: dict[str, Any], error: type[Exception], accepted: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        dgm_tb.record(model, tmp_path, **options)
    assert accepted in str(raised.value)


def test_a_loop_that_resumes_supersedes_the_steps_from_there(tmp_path: Path) -> None:
    first = run("vae", tmp_path)
    again = run("vae", tmp_path, resume_step=9, epochs=1)
    assert again.recorder.n_steps == 15
    one, two = (Recording.read(folder) for folder in recordings(tmp_path))
    assert [step for step, _ in two.steps()] == list(range(9, 15))
    found = dgm_tb.open_run(tmp_path).losses["loss"]
    assert found.steps.tolist() == list(range(15))
    losses = [outcome["loss"] for outcome in (*first.losses[:9], *again.losses)]
    assert found.values.tolist() == losses
    assert len(one.steps()) == 12


def test_neither_lightning_nor_its_twin_is_needed(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import dgm_tb, torch\n"
        "model = torch.nn.Linear(3, 2)\n"
        "with dgm_tb.record(model, sys.argv[1]) as recorder:\n"
        "    loss = model(torch.ones(4, 3)).sum(); loss.backward(); recorder.step(loss)\n"
        "print(dgm_tb.open_run(sys.argv[1]).losses['loss'].steps)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[0]\n"), done.stderr

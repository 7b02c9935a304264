"""When, in a loop of plain PyTorch: which calls of a model make up a step, and what is known of its batch."""

import functools
import inspect
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import dgm_tb
from dgm_tb import records
from dgm_tb.callback import signals
from dgm_tb.callback.alone import is_distributed
from dgm_tb.callback.calls import Calls
from dgm_tb.callback.draws import Draws
from dgm_tb.callback.loop_models import Models, named_models, unwrapped
from dgm_tb.callback.nested import arguments_as_batch, named_arguments, tensors_in
from dgm_tb.callback.options import Options
from dgm_tb.callback.recorder import Recorder
from dgm_tb.callback.rerun import LoopRerun
from dgm_tb.callback.say import warn
from dgm_tb.records import Finding

_F = TypeVar("_F", bound=Callable[..., Any])


def record(
    model: nn.Module | Mapping[str, nn.Module], logdir: str | Path, *, resume_step: int = 0, **options: Any
) -> "LoopRecorder":
    """Record a training loop of your own for TensorBoard's tab *DGMTracker*, ``dgm-tb diagnose`` and ``open_run``.

    Example:
        >>> with dgm_tb.record(model, "runs/first") as recorder:
        ...     for batch in loader:
        ...         loss = model(batch).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         recorder.step(loss)

    Args:
        model: The model, as the loop calls it (compiled or wrapped, if it does so), or several by name:
            ``{"generator": generator, "discriminator": discriminator}``.
        logdir: Run folder to write to.
        resume_step: Number of the first step, where a training goes on; it supersedes what was recorded from there.
        options: Those of ``DGMTrackerCallback``: ``every_n_steps``, ``window_steps``, ``ring_steps``,
            ``snapshot_steps``, ``max_overhead``, ``max_disk_mb``, ``max_copy_mb``, ``exact_snapshots``, ``on_finding``,
            ``rules``, ``roles``.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If it is no model, or there is no such option.
    """
    if not isinstance(resume_step, int) or isinstance(resume_step, bool) or resume_step < 0:
        raise ValueError(f"resume_step is a whole number of at least 0; got {resume_step!r}")
    known = [name for name in inspect.signature(Options).parameters if name != "logdir"]
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"no option {unknown[0]!r}; there are {', '.join(known)}")
    models = named_models(model)
    return LoopRecorder(models, Options(logdir=logdir, **options), resume_step)


def _guarded(method: _F) -> _F:
    """A method whose errors end the recording, with one warning, and never the loop."""

    @functools.wraps(method)
    def guarded(self: "LoopRecorder", *args: Any, **kwargs: Any) -> Any:
        if not self.is_recording:
            return None
        with signals.held:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self._give_up(f"{method.__name__.strip('_')} failed with {type(error).__name__}: {error}")
        return None

    return guarded  # type: ignore[return-value]


class LoopRecorder:
    """Records a loop; made by ``dgm_tb.record``, and used in a ``with`` block around the loop.

    *Steps.* A step begins with the first call of the model with gradients enabled, and ends with ``step``, the last
    line of the loop's body. All calls in between belong to it. What is validation is left out: calls under
    ``torch.no_grad`` or ``torch.inference_mode`` between two steps or in evaluation mode, and calls in evaluation mode
    of a model that has been trained in training mode before. Whatever else is no training goes into
    ``with recorder.paused():``.

    *Batches.* Dataset indices and the batch itself come from the ``DataLoader``. Pass ``batch`` (and ``indices``) to
    ``step`` if there is none, or if the loop moves batches to a device some steps before it uses them. Else the first
    call's arguments stand for the batch.

    *Failures.* A step with NaN, Inf or an abnormal example becomes a finding that names layer, neurons and example. To
    find the first function that failed, the step's calls of the model are made again from their noted arguments, with
    weights, buffers and random state as they were, and everything is put back. The loop's own code can't be run again:
    not the loss, its backward pass, nor functions between two calls. If the loop raises, the step is looked into, all
    is written, and the exception goes on.

    Attributes:
        is_recording: Whether anything is recorded still.
    """

    def __init__(self, models: Mapping[str, nn.Module], options: Options, resume_step: int) -> None:
        self.is_recording = True
        self._models = models
        self._model_of = {id(part): model for model in models.values() for part in model.modules()}
        self._was_training: set[int] = set()
        self._pauses = 0
        self._is_aside = self._is_observed = False
        self._backward_pass = -1
        self._resume_step = self._n_optimizer_steps = resume_step
        self._argument_names: dict[int, list[str]] = {}
        self._warned: set[str] = set()
        self._findings: list[Finding] = []
        self._recorder: Recorder | None = None
        self._draws = Draws()
        self._calls: Calls | None = None
        self._handles: list[Any] = []
        try:
            self._start(options, resume_step)
            signals.watch(self._close_at_exit)
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {error}")

    @property
    def findings(self) -> list[Finding]:
        """Everything found so far, in the order it was found."""
        return self._recorder.findings if self._recorder is not None else self._findings

    @property
    def should_stop(self) -> bool:
        """Whether a finding of severity error asks for the end of the training (``on_finding="stop"``)."""
        return self._recorder is not None and self._recorder.should_stop

    @property
    def n_steps(self) -> int:
        """Number of steps so far, ``resume_step`` included: what to resume from."""
        return self._recorder.step if self._recorder is not None else self._resume_step

    def __enter__(self) -> "LoopRecorder":
        """Go on recording; it began when this was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write everything; if the loop raised, look into its last step first."""
        try:
            if error is not None and self.is_recording and self._recorder is not None:
                self._recorder.fail(error, self._n_optimizer_steps)
        finally:
            self._close("finished" if error is None else "interrupted")

    def step(
        self,
        loss: Tensor | float | Mapping[str, Tensor | float] | None = None,
        *,
        batch: Any = None,
        indices: list[int] | None = None,
    ) -> None:
        """End a step: the last line of the loop's body, after the optimizers have stepped.

        Args:
            loss: The step's loss, or several by name.
            batch: The batch, if no ``DataLoader`` gave it to the loop in this step.
            indices: Dataset index of every example in it, if known.
        """
        self._end_step(loss, batch, indices)
        signals.raise_unheard()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what runs inside: calls of the model that are no training, with gradients enabled."""
        self._pauses += 1
        self._observe(False)
        try:
            yield
        finally:
            self._pauses -= 1
            self._observe(not self._pauses)

    def close(self) -> None:
        """Write everything and remove every hook. Safe to call twice."""
        self._close("finished")

    # -- start and end -------------------------------------------------------------------------------------------------

    def _start(self, options: Options, resume_step: int) -> None:
        self._calls = Calls(self._models.values(), self._before_call, self._after_call)
        self._rerun = LoopRerun(self._calls.off)
        roots = {name: unwrapped(model) for name, model in self._models.items()}
        root = roots[""] if "" in roots else Models(roots)
        facts = {
            "versions": {"dgm_tb": dgm_tb.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "model": " + ".join(type(part).__name__ for part in roots.values()),
            "resume_step": resume_step,
            "rank": dist.get_rank() if is_distributed() else 0,
            "world_size": dist.get_world_size() if is_distributed() else 1,
        }
        place = Path(options.logdir or "") / "plugins" / records.PLUGIN_NAME
        self._recorder = Recorder(root, options, place, facts, self._rerun)
        self._paths = {id(module): name for name, module in root.named_modules()}
        self._parameters = {id(parameter) for parameter in root.parameters()}
        self._handles.append(register_optimizer_step_pre_hook(self._on_optimizer_step))
        self._draws.install()

    def _give_up(self, reason: str) -> None:
        if self._recorder is not None:
            self._recorder.give_up(reason)
        else:
            warn(f"nothing is recorded, training goes on: {reason}")
        self._remove()

    def _close(self, reason: str) -> None:
        try:
            with signals.held:
                if self._recorder is not None:
                    if self.is_recording and self._recorder.is_in_step and self.n_steps == self._resume_step:
                        self._warn_once("recorder.step was never called, so nothing was recorded")
                    self._recorder.abandon_step()
                    self._recorder.close(reason)
        finally:
            self._remove()

    def _close_at_exit(self) -> None:
        """The script ends and nobody has closed it: do as ``with`` would have done."""
        self.__exit__(None, signals.ended_by(), None)

    def _remove(self) -> None:
        self.is_recording = False
        signals.unwatch(self._close_at_exit)
        if self._calls is not None:
            self._calls.remove()
        self._draws.remove()
        for handle in self._handles:
            handle.remove()

    # -- calls of the model --------------------------------------------------------------------------------------------

    @_guarded
    def _before_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder = self._recorder
        if recorder is None or self._pauses:
            return
        if not self._belongs(self._model_of[id(module)]):
            self._draws.skip()
            self._is_aside = True
            self._observe(False)
            return
        if not recorder.is_in_step:
            self._begin_step(args, kwargs)
        if recorder.before is not None:
            self._note_call(module, args, kwargs)

    @_guarded
    def _after_call(self, module: nn.Module, output: Any) -> None:
        if self._is_aside:
            self._is_aside = False
            self._observe(not self._pauses)
        elif not self._pauses:
            self._rerun.note_output(output)
            for tensor in tensors_in(output) if self._is_observed else ():
                if tensor.grad_fn is not None:  # hooks of a parameter would stay
                    tensor.register_hook(self._on_output_gradient)  # type: ignore[no-untyped-call]

    def _belongs(self, model: nn.Module) -> bool:
        """Whether a call of the model is training; see the class."""
        if torch.is_grad_enabled():
            if model.training:
                self._was_training.add(id(model))
            return model.training or id(model) not in self._was_training
        return model.training and self._recorder is not None and self._recorder.is_in_step

    def _begin_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        draw = self._draws.take((args, kwargs))
        batch = draw.batch if draw is not None else arguments_as_batch(args, kwargs)
        if self._recorder is not None:
            self._n_calls: dict[str, int] = {}
            self._rerun.begin(self._recorder.step)
            self._recorder.begin_step(batch, self._recorder.step, draw.indices if draw is not None else None)
            self._is_observed = self._recorder.capture.is_active

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what a call gets: to make it again, and as inputs of the model."""
        recorder = self._recorder
        if recorder is None or recorder.before is None:
            return
        is_first = not self._n_calls
        kept = self._rerun.note_call(module, args, kwargs, recorder.before.random if is_first else None)
        path = self._paths.get(id(unwrapped(module)), "")
        place = f"{path}.input" if path else "input"
        call = self._n_calls[place] = self._n_calls.get(place, -1) + 1
        names = [f"{place}[{name}]" + (f"@{call}" if call else "") for name in self._names_of(module, args, kwargs)]
        if recorder.map.tracer is not None:
            recorder.map.tracer.note_inputs(named_arguments(names, args, kwargs))
        known = {id(tensor) for tensor in tensors_in(recorder.before.batch)}
        inputs = named_arguments(names, *kept)
        recorder.before.add_inputs({name: inputs[name] for name in inputs if id(inputs[name]) not in known})

    def _names_of(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """Names of the arguments."""
        if id(module) not in self._argument_names:
            self._argument_names[id(module)] = list(inspect.signature(unwrapped(module).forward).parameters)
        names = self._argument_names[id(module)]
        return [*(names + [str(number) for number in range(len(args))])[: len(args)], *kwargs]

    def _observe(self, is_on: bool) -> None:
        recorder = self._recorder
        if recorder is not None and recorder.is_in_step:
            recorder.capture.is_active = is_on and self._is_observed
            if recorder.map.tracer is not None:
                recorder.map.tracer.is_aside = not is_on

    # -- backward passes and optimizers --------------------------------------------------------------------------------

    @_guarded
    def _on_output_gradient(self, gradient: Tensor) -> None:
        """A backward pass has begun: have its end told."""
        if self._backward_pass != torch._C._current_graph_task_id():
            self._backward_pass = torch._C._current_graph_task_id()
            _at_end_of_backward(self._after_backward)

    @_guarded
    def _after_backward(self, *, is_reduced: bool = False) -> None:
        if is_distributed() and not is_reduced:  # DistributedDataParallel waits for the other ranks at the end, too
            _at_end_of_backward(functools.partial(self._after_backward, is_reduced=True))
            return
        recorder = self._recorder
        if recorder is not None and recorder.is_in_step:
            recorder.vitals.measure_gradients()
        elif not self._pauses:
            self._warn_once("loss.backward() ran after recorder.step(loss), so its gradients are not recorded")

    @_guarded
    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        recorder = self._recorder
        if recorder is None or not any(id(parameter) in self._parameters for parameter in parameters):
            return
        self._n_optimizer_steps += 1
        if recorder.is_in_step:
            is_fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
            recorder.note_gradients(parameters, are_scaled=is_fused)
            self._rerun.note_step(parameters)
        elif not self._pauses and not any(map(callable, (*args[1:], *kwargs.values()))):  # a closure begins the step
            self._warn_once("optimizer.step() ran after recorder.step(loss), so its update belongs to no step")

    # -- the end of a step ---------------------------------------------------------------------------------------------

    @_guarded
    def _end_step(self, loss: Any, batch: Any, indices: list[int] | None) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        if not recorder.is_in_step:
            self._warn_once("no module of the model was called in this step: pass the model that the loop calls")
            self._begin_step((), {})
        for name, value in (loss if isinstance(loss, Mapping) else {"loss": loss}).items():
            self._note_loss(str(name), value)
        if batch is not None and recorder.before is not None:
            self._note_batch(batch, indices)
        recorder.end_step(self._n_optimizer_steps)
        self._is_aside = False
        if self._calls is not None:
            self._calls.reset()
        if recorder.is_broken:
            self._remove()

    def _note_loss(self, name: str, loss: Any) -> None:
        if self._recorder is not None:
            self._recorder.note_loss(name, loss)
        is_number = isinstance(loss, (int, float)) or (isinstance(loss, Tensor) and loss.numel() == 1)
        if loss is not None and not is_number:
            what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            self._warn_once(f"a loss is a number or a tensor of one element; {name} is {what} and is not recorded")

    def _note_batch(self, batch: Any, indices: list[int] | None) -> None:
        recorder, draw = self._recorder, self._draws.of(batch)
        if recorder is None or recorder.before is None:
            return
        if indices is None and draw is not None:
            indices = draw.indices
        recorder.before.replace_batch(batch, indices)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warn(f"{text}; call recorder.step at the end of the loop's body")


def _at_end_of_backward(function: Callable[[], None]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(function)

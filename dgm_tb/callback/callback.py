"""When: maps PyTorch Lightning's hooks to the recorder's steps, and finds out where to write.

Lightning comes as two packages of the same content, ``lightning`` and ``pytorch_lightning``. This module imports
neither; ``lightning.py`` and ``pytorch_lightning.py`` beside it join ``TrackerHooks`` with their package's base class.
"""

import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from torch import Tensor

import dgm_tb
from dgm_tb import framing, records
from dgm_tb.callback.examples import SamplerObserver, batch_size
from dgm_tb.callback.options import Options, local_folder
from dgm_tb.callback.recorder import Recorder
from dgm_tb.callback.rerun import LightningRerun
from dgm_tb.callback.say import warn
from dgm_tb.records import Finding


class TrackerHooks:
    """Records a training for TensorBoard's tab *DGMTracker*, ``dgm-tb diagnose`` and ``dgm_tb.open_run``.

    It never changes the training: losses and final weights are those without it, bit for bit on the CPU. If something
    goes wrong inside it, it warns once, says what is lost, and training goes on.

    Args:
        logdir: Run folder to write to; by default that of the trainer's TensorBoard logger, else the trainer's
            ``log_dir``, else its ``default_root_dir``.
        every_n_steps: Observe the neurons in every n-th step. Losses and alarms: every step.
        window_steps: Observed steps summed up in one point of the all-neuron dynamics; 1 keeps every step.
        ring_steps: Last steps kept whole in memory, batches included; the numbers of every neuron are kept for eight
            times as many (up to 32 MB), and written when something goes wrong and at the end.
        snapshot_steps: Contribution matrices are taken at the first step and at 1, 2, 5, 10, 20, 50, ... times this.
        max_overhead: Share of the training time that observing may take; beyond ten seconds and this share, fewer
            steps are observed. None: no limit.
        max_disk_mb: Size of the recording on disk in MB: to stay within it, old windows are thinned out again and
            again, and keep their smallest and largest values.
        max_copy_mb: Size of the weights in MB up to which they are copied before a step: without a copy there are no
            relative updates, and a failing step can't be run again.
        exact_snapshots: Whether contributions through sums, sampling and attention are worked out at scheduled
            snapshots, too, not at findings only: such a step is run again for it, and the model's own hooks with it.
        on_finding: ``"warn"``, ``"stop"`` (stops after a finding of severity error), ``"ignore"``, or a function that
            gets each ``Finding``; of warnings and errors only, among several processes on rank 0.
        rules: Further rules of relevance propagation: module class or function -> rule.
        roles: Names for the parts of the model, such as ``{"generator": "net_g"}``; kept in the recording, and not used
            by any detector yet.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        *,
        logdir: str | Path | None = None,
        every_n_steps: int = 1,
        window_steps: int = 32,
        ring_steps: int = 8,
        snapshot_steps: int = 50,
        max_overhead: float | None = 0.05,
        max_disk_mb: int = 2048,
        max_copy_mb: int = 1024,
        exact_snapshots: bool = False,
        on_finding: Literal["warn", "stop", "ignore"] | Any = "warn",
        rules: Mapping[Any, Any] | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self.options = Options(
            logdir=logdir,
            every_n_steps=every_n_steps,
            window_steps=window_steps,
            ring_steps=ring_steps,
            snapshot_steps=snapshot_steps,
            max_overhead=max_overhead,
            max_disk_mb=max_disk_mb,
            max_copy_mb=max_copy_mb,
            exact_snapshots=exact_snapshots,
            on_finding=on_finding,
            rules={} if rules is None else rules,
            roles={} if roles is None else roles,
        )
        self.recorder: Recorder | None = None
        self._observer = SamplerObserver()
        self._step = 0
        self._n_backward = 0
        self._place = (-1, 0)
        self._findings: list[Finding] = []

    @property
    def findings(self) -> list[Finding]:
        """Everything found so far, in the order it was found."""
        return self.recorder.findings if self.recorder is not None else self._findings

    # -- start and end -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start to observe the samplers, before Lightning makes its first iterator."""
        if stage != "fit":
            return
        if trainer.global_step == 0:
            self._step = 0  # a training of its own, not the next part of one; a checkpoint sets the counter after this
        try:
            self._observer.install()
        except Exception as error:
            self._lose_indices(error)
        _watch_worker(self, trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the recording."""
        try:
            self._start(trainer, pl_module)
        except Exception as error:
            self._close("exception")
            warn(f"nothing is recorded, training goes on: {type(error).__name__}: {error}")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write everything."""
        self._close("finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Look into the step that raised, and write everything."""
        if self.recorder is not None:
            self.recorder.fail(exception, trainer.global_step)
        self._close("exception")
        self._observer.remove()  # Lightning tears no callback down after an exception

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write everything, if it was not done yet, and leave no trace."""
        self._close("finished")
        self._observer.remove()
        vars(trainer).pop("_run_stage", None)

    def state_dict(self) -> dict[str, Any]:
        """The step counter, for resuming."""
        return {"step": self.recorder.step if self.recorder is not None else self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint was written."""
        self._step = int(state_dict.get("step", 0))

    # -- steps ---------------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a step."""
        if self.recorder is not None:
            self._n_backward = 0
            self.recorder.begin_step(batch, batch_idx, self._next_indices(trainer, batch, batch_idx))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note the loss of each manual backward pass."""
        if self.recorder is not None and not pl_module.automatic_optimization:
            self.recorder.note_loss(f"backward.{self._n_backward}", loss)
            self._n_backward += 1

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the gradients, unscaled and not yet clipped."""
        if self.recorder is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            is_fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False))  # it unscales them by itself
            self.recorder.note_gradients(parameters, are_scaled=is_fused)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the step."""
        if self.recorder is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self.recorder.note_loss("loss", loss.detach() * trainer.accumulate_grad_batches)
        self.recorder.end_step(trainer.global_step)
        if self.recorder.should_stop:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Forget a step that the training skipped."""
        if self.recorder is not None:
            self.recorder.abandon_step()

    # -- internals -----------------------------------------------------------------------------------------------------

    def _start(self, trainer: Any, pl_module: Any) -> None:
        self._place = (-1, 0)
        folder = self._run_folder(trainer)
        is_writing = folder is not None and trainer.is_global_zero and not bool(getattr(trainer, "fast_dev_run", False))
        facts = {
            "versions": {
                "dgm_tb": dgm_tb.__version__,
                "torch": torch.__version__,
                **_lightning_version(trainer),
                "python": sys.version.split()[0],
            },
            "model": type(pl_module).__name__,
            "resume_step": self._step,
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
        }
        rerun = LightningRerun(pl_module, trainer.precision_plugin.train_step_context)
        place = folder / "plugins" / records.PLUGIN_NAME if is_writing and folder is not None else None
        self.recorder = Recorder(pl_module, self.options, place, facts, rerun if rerun.can_run else None)
        self._tap_log(pl_module)
        if folder is not None and self.recorder.output.is_writing:
            _write_marker(trainer, folder)

    def _run_folder(self, trainer: Any) -> Path | None:
        if self.options.logdir is not None:
            return local_folder(self.options.logdir)
        for logger in trainer.loggers:
            if _is_tensorboard(logger):
                return local_folder(logger.log_dir)
        return local_folder(trainer.log_dir or trainer.default_root_dir)

    def _next_indices(self, trainer: Any, batch: Any, batch_idx: int) -> list[int] | None:
        if not self._observer.is_installed:
            return None
        try:
            loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
            indices = None
            for _ in range(self._n_drawn(trainer, batch_idx)):
                indices = self._observer.next_batch(loaders, batch_size(batch))
            return indices
        except Exception as error:
            self._lose_indices(error)
            return None

    def _n_drawn(self, trainer: Any, batch_idx: int) -> int:
        """Batches drawn since the last one seen here: Lightning calls no hook for those that are None."""
        (epoch, last), self._place = self._place, (trainer.current_epoch, batch_idx)
        if epoch == trainer.current_epoch:
            return batch_idx - last
        is_resumed = epoch < 0 and trainer.ckpt_path is not None
        return 1 if is_resumed else batch_idx + 1

    def _lose_indices(self, error: Exception) -> None:
        self._observer.remove()
        warn(f"can't tell which examples are in a batch, training goes on: {type(error).__name__}: {error}")

    def _tap_log(self, pl_module: Any) -> None:
        """See every value that the training step logs, under its own name, as it is logged."""
        if self.recorder is not None:
            pl_module.__dict__["log"] = _LogTap(pl_module, self.recorder)

    def _close(self, reason: str) -> None:
        if self.recorder is not None:
            self.recorder.close(reason)
            self.recorder.root.__dict__.pop("log", None)
            self._step, self._findings = self.recorder.step, self.recorder.findings
            self.recorder = None


def _watch_worker(callback: TrackerHooks, trainer: Any) -> None:
    """Where Lightning forks or spawns its processes, they die of an exception without a word to the callbacks."""
    launcher = getattr(trainer.strategy, "launcher", None)
    if not any(kind.__name__ == "_MultiProcessingLauncher" for kind in type(launcher).__mro__):
        return
    run = trainer._run_stage

    def watched() -> Any:
        try:
            return run()
        except BaseException as error:
            callback.on_exception(trainer, trainer.lightning_module, error)
            raise

    trainer._run_stage = watched


class _LogTap:
    """A LightningModule's ``log`` that also tells the recorder; a copy of the module gets its own plain ``log``."""

    def __init__(self, module: Any, recorder: Recorder) -> None:
        self._module = module
        self._log = module.log
        self._recorder = recorder

    def __call__(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if not torch.compiler.is_compiling() and self._recorder.is_in_step:
            self._recorder.note_loss(name, value)
        self._log(name, value, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._module, "log")


def _lightning_version(trainer: Any) -> dict[str, str]:
    """Name and version of the package that the trainer comes from: callbacks of either work with trainers of both."""
    packages = (base.__module__.partition(".")[0] for base in type(trainer).__mro__)
    name = next((name for name in packages if name in ("lightning", "pytorch_lightning")), "")
    return {name: str(sys.modules[name].__version__)} if name in sys.modules else {}


def _is_tensorboard(logger: Any) -> bool:
    """Whether it is a ``TensorBoardLogger`` of either package."""
    return any(base.__name__ == "TensorBoardLogger" for base in type(logger).__mro__)


def _write_marker(trainer: Any, folder: Path) -> None:
    """Tell TensorBoard, through the user's own logger, that this run has a recording: the tab shows at once."""
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=records.PLUGIN_NAME, content=b"1"),
        data_class=summary_pb2.DATA_CLASS_TENSOR,
    )
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1.0])
    tensor.tensor_shape.SetInParent()
    value = summary_pb2.Summary.Value(tag=records.MARKER_TAG, metadata=metadata, tensor=tensor)
    summary = summary_pb2.Summary(value=[value])
    for logger in trainer.loggers:
        if _is_tensorboard(logger) and Path(logger.log_dir) == folder:
            logger.experiment._get_file_writer().add_summary(summary, 0)
            return
    if any(folder.glob("*tfevents*")):
        return  # a second event file would freeze the first one's scalars in TensorBoard's Python backend
    now = time.time()
    events = [
        event_pb2.Event(wall_time=now, file_version="brain.Event:2"),
        event_pb2.Event(wall_time=now, step=0, summary=summary),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.dgmtracker"
    (folder / name).write_bytes(b"".join(framing.frame(event.SerializeToString()) for event in events))

"""Run a scenario's training under the callback."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from dgm_tb.callback import DGMTrackerCallback
from dgm_tb.demo import SCENARIOS


@dataclass(frozen=True)
class Training:
    """What ``trainer.fit`` needs.

    Attributes:
        model: The model.
        batches: Its training batches.
        max_epochs: For how long.
        validation: Batches for ``validation_step``, if the model has one.
    """

    model: L.LightningModule
    batches: DataLoader[Any]
    max_epochs: int
    validation: DataLoader[Any] | None = None


def fit(
    training: Training,
    callbacks: Sequence[L.Callback] = (),
    *,
    logger: TensorBoardLogger | None = None,
    **options: Any,
) -> None:
    """Train on the CPU, as a user's script would.

    Args:
        training: Model and batches.
        callbacks: For the trainer.
        logger: For the trainer; None for none.
        options: Further arguments of ``lightning.Trainer``.
    """
    with warnings.catch_warnings():
        # Lightning's hint to use more workers: batches of a tensor in memory come faster without.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=training.max_epochs,
            callbacks=list(callbacks),
            logger=logger or False,
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            **options,
        )
        trainer.fit(training.model, training.batches, training.validation)


def record(scenario: str, logdir: Path, **options: Any) -> Path:
    """Train a scenario with ``DGMTrackerCallback`` and a TensorBoard logger.

    Args:
        scenario: A key of ``SCENARIOS``.
        logdir: Log folder; the run becomes ``<logdir>/<scenario>/version_N`` with the next free N.
        options: Further arguments of ``lightning.Trainer``.

    Returns:
        The run's folder.
    """
    logger = TensorBoardLogger(logdir, scenario)
    run = Path(logger.log_dir)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no lines about accelerators that are not there
    callback = DGMTrackerCallback(window_steps=8, on_finding="ignore")
    torch.set_num_threads(1)  # for models as small as these a second thread gains nothing, and waits on a busy machine
    fit(SCENARIOS[scenario].build(), [callback], logger=logger, **options)
    return run

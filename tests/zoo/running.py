"""Runs cases: trained once with the callback, diagnosed from the disk, the truth verified beside it."""

import logging
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from dgm_tb import DGMTrackerCallback, open_run
from dgm_tb.records import Finding

from . import adversarial, classifiers, controls, generative, mixed, sequences, styles, supervised  # noqa: F401 - they fill the table
from .cases import CASES, Case
from .probe import Probe
from .score import Score, score

_QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


@dataclass(frozen=True)
class Result:
    """One case, run.

    Attributes:
        name: Of the case.
        findings: What was found.
        score: How right that is.
        is_true: Whether the oracle confirms the case's truth.
        seconds: CPU time of the diagnosis.
    """

    name: str
    findings: list[Finding]
    score: Score
    is_true: bool
    seconds: float

    @property
    def case(self) -> Case:
        """The case."""
        return CASES[self.name]


def train(case: Case, folder: Path) -> Probe:
    """Train a case with the callback and the probe."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, data, options = case.build()
    probe = Probe()
    logger = TensorBoardLogger(folder, name="", version="")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(logger=logger, callbacks=[DGMTrackerCallback(), probe], **_QUIET, **options)
        try:
            trainer.fit(model, data)
        except Exception:
            traceback.print_exc()
    return probe


def run(name: str, folder: Path) -> Result:
    """Train, diagnose and judge one case."""
    torch.set_num_threads(1)
    case = CASES[name]
    probe = train(case, folder / name)
    began = time.process_time()
    findings = open_run(folder / name).findings
    seconds = time.process_time() - began
    try:
        is_true = bool(case.check(probe))
    except Exception:
        traceback.print_exc()
        is_true = False
    return Result(name, findings, score(case, findings), is_true, seconds)

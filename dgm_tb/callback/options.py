"""The options of a recording, checked when they are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dgm_tb.records import Finding

OnFinding = Literal["warn", "stop", "ignore"] | Callable[[Finding], None]


@dataclass(frozen=True)
class Options:
    """See ``DGMTrackerCallback`` for what each means.

    Raises:
        ValueError: If one is out of its range; the sentence says which values it takes.
    """

    logdir: str | Path | None = None
    every_n_steps: int = 1
    window_steps: int = 32
    ring_steps: int = 8
    snapshot_steps: int = 50
    max_overhead: float | None = 0.05
    max_disk_mb: int = 2048
    max_copy_mb: int = 1024
    exact_snapshots: bool = False
    on_finding: OnFinding = "warn"
    rules: Mapping[Any, Any] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logdir is not None:
            local_folder(self.logdir)
        for name in ("every_n_steps", "window_steps", "ring_steps", "snapshot_steps", "max_disk_mb", "max_copy_mb"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is a whole number of at least 1; got {value!r}")
        if not isinstance(self.exact_snapshots, bool):
            raise ValueError(f"exact_snapshots is True or False; got {self.exact_snapshots!r}")
        share = self.max_overhead
        if share is not None and not (isinstance(share, (int, float)) and 0 < share <= 10):
            raise ValueError(f"max_overhead is a share of the training time, as 0.05, or None; got {share!r}")
        if not callable(self.on_finding) and self.on_finding not in ("warn", "stop", "ignore"):
            raise ValueError(f"on_finding is 'warn', 'stop', 'ignore' or a function; got {self.on_finding!r}")
        for name in ("rules", "roles"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} is a mapping, as {{'generator': 'net_g'}}; got {getattr(self, name)!r}")

    def to_json(self) -> dict[str, Any]:
        """The options as the recording tells of them."""
        return {
            "every_n_steps": self.every_n_steps,
            "window_steps": self.window_steps,
            "ring_steps": self.ring_steps,
            "snapshot_steps": self.snapshot_steps,
            "max_overhead": self.max_overhead,
            "max_disk_mb": self.max_disk_mb,
            "max_copy_mb": self.max_copy_mb,
            "exact_snapshots": self.exact_snapshots,
            "on_finding": self.on_finding if isinstance(self.on_finding, str) else "function",
            "rules": [getattr(key, "__name__", str(key)) for key in self.rules],
            "roles": dict(self.roles),
        }


def local_folder(place: str | Path) -> Path:
    """A run folder to write to.

    Raises:
        ValueError: If it is the address of a remote folder: segments are appended to, which object stores can't do.
    """
    if "://" in str(place):
        raise ValueError(
            f"recordings are written to local folders; got {str(place)!r}: give logdir=<a local folder> and copy it "
            "there (TensorBoard, open_run and dgm-tb read it at that address)"
        )
    return Path(place)

"""Keeps the cost of observing neurons within a share of the training time by observing fewer steps."""

MAX_CADENCE = 256
GRACE_SECONDS = 10.0
"""Own time that is always granted: short trainings keep every step."""


class Governor:
    """Chooses how many steps lie between two observed ones; the alarm checks of every step are not its business.

    Keeps ``own time <= GRACE_SECONDS + max_overhead * elapsed time`` by doubling or halving the cadence.

    Args:
        every_n_steps: The cadence the user asked for; never finer than this.
        max_overhead: Share of the training time, or None to observe as asked, whatever it costs.

    Attributes:
        cadence: Steps between observed ones now.
        since: First step to which that applies.
    """

    def __init__(self, every_n_steps: int, max_overhead: float | None) -> None:
        self.every_n_steps = every_n_steps
        self.max_overhead = max_overhead
        self.cadence = every_n_steps
        self.since = 0
        self._own = 0.0
        self._elapsed = 0.0
        self._n_since_change = 0

    def is_due(self, step: int) -> bool:
        """Whether this step is observed."""
        return step % self.cadence == 0

    def account(self, own: float, elapsed: float) -> bool:
        """Take in the cost of one step.

        Args:
            own: Seconds spent by the recorder in it.
            elapsed: Seconds the whole step took, the recorder's included.

        Returns:
            Whether the cadence changed.
        """
        self._own += own
        self._elapsed += elapsed
        self._n_since_change += 1
        if self.max_overhead is None or self._n_since_change < 4 * self.cadence:
            return False
        budget = GRACE_SECONDS + self.max_overhead * self._elapsed
        before = self.cadence
        if self._own > budget:
            self.cadence = min(self.cadence * 2, MAX_CADENCE * self.every_n_steps)
        elif self._own < 0.8 * budget and self.cadence > self.every_n_steps:
            self.cadence //= 2
        self._n_since_change = 0
        return self.cadence != before

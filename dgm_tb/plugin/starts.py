"""The starts of a training in one run folder: in which order they came, and which of them ran at the same time."""

from collections.abc import Iterable

from dgm_tb.plugin.recording import Recording


def in_order(recordings: Iterable[Recording]) -> list[Recording]:
    """Recordings, oldest first. Their own count goes before the clock, which may have been set back between them."""
    kept = [recording for recording in recordings if not recording.is_empty]
    return sorted(kept, key=lambda recording: (recording.order, recording.started, recording.name))


def at_once(recordings: list[Recording]) -> str | None:
    """A sentence on recordings that were written at the same time, by their clocks; None if none were.

    Args:
        recordings: Of one run, oldest first.
    """
    written = [(recording, recording.written) for recording in recordings]
    spans = [(recording, span) for recording, span in written if span is not None]
    together: dict[str, Recording] = {}
    for number, (early, (began, wrote)) in enumerate(spans):
        for late, (late_began, late_wrote) in spans[number + 1 :]:
            if late_began < wrote and began < late_wrote:
                together |= {early.name: early, late.name: late}
    if not together:
        return None
    newest = max(together.values(), key=recordings.index)
    return (
        f"{len(together)} trainings wrote this run at the same time (recordings {', '.join(together)}): "
        f"from step {newest.resume_step} on the one that started last is shown, {newest.name}"
    )

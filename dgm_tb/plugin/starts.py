"""The starts of a training in one run folder: their order, and what is to be said of them."""

from collections.abc import Iterable

from dgm_tb.plugin.recording import Recording
from dgm_tb.records import SCHEMA_VERSION

MAX_NAMED = 5


def in_order(recordings: Iterable[Recording]) -> list[Recording]:
    """Recordings, oldest first.

    Their own count goes before the clock, which may have been set back between them; those that did not count come
    first. Where the beginning of a recording is lost, nobody knows whether it did: the clock tells its place.
    """
    kept = [recording for recording in recordings if not recording.is_empty]
    ordered = sorted((r for r in kept if r.facts), key=lambda r: (r.order, r.started, r.name))
    for lost in sorted((r for r in kept if not r.facts), key=lambda r: (r.started, r.name)):
        later = (number for number, recording in enumerate(ordered) if recording.started > lost.started)
        ordered.insert(next(later, len(ordered)), lost)
    return ordered


def at_once(recordings: list[Recording]) -> str | None:
    """A sentence on recordings that were written at the same time, by their clocks; None if none were.

    Args:
        recordings: Of one run, oldest first.
    """
    spans = [(span, number) for number, recording in enumerate(recordings) if (span := recording.written) is not None]
    together: set[int] = set()
    last, until = -1, float("-inf")
    for (began, wrote), number in sorted(spans):
        if began < until:
            together |= {last, number}
        if wrote > until:
            last, until = number, wrote
    if not together:
        return None
    names = [recordings[number].name for number in sorted(together)]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    newest = recordings[max(together)]
    return (
        f"{len(names)} trainings wrote this run at the same time (recordings {', '.join(names[:MAX_NAMED])}{more}):"
        f" from step {newest.resume_step} on the one that started last is shown, {newest.name}"
    )


def newer(recording: Recording) -> list[str]:
    """What only a newer version understands of a recording."""
    found = []
    schema = recording.facts.get("schema")
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        found.append(
            f"recording {recording.name} has schema {schema}, this version reads up to {SCHEMA_VERSION}: "
            "update dgm_tb to see all of it"
        )
    for name, count in recording.unknown_kinds.items():
        plural, they = ("", "was") if count == 1 else ("s", "were")
        what = f"array{plural} {name!r}" if "." in name else f"record{plural} of the unknown kind {name!r}"
        found.append(f"{count} {what} {they} skipped: a newer dgm_tb wrote {'it' if count == 1 else 'them'}")
    return found

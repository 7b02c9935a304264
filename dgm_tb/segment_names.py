"""Names of the files of a recording, and which of them tell of the same steps.

- ``000007.dgm``: a segment, as the writer appended it.
- ``000004-000007.dgm``: the segments 4 to 7, thinned out to fewer bytes. It replaces them as soon as it has this name;
  whatever of them is still there is passed over.
- ``live.dgm``: what is known of windows that have not ended yet. It is replaced as a whole every few seconds, and gone
  when the recording has ended. Its records count only where the segments tell of earlier steps than they do.
"""

import re
from collections.abc import Iterable

SEGMENT_SUFFIX = ".dgm"
LIVE_NAME = f"live{SEGMENT_SUFFIX}"

_NAME = re.compile(rf"(\d{{6,9}})(?:-(\d{{6,9}}))?{re.escape(SEGMENT_SUFFIX)}")


def segment_name(first: int, last: int | None = None) -> str:
    """The name of a segment, or of one that replaces the segments ``first`` to ``last``."""
    return f"{first:06d}{SEGMENT_SUFFIX}" if last is None else f"{first:06d}-{last:06d}{SEGMENT_SUFFIX}"


def segment_span(name: str) -> tuple[int, int] | None:
    """Numbers of the first and the last segment that a file stands for; None if it is none of ours."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    first = int(match[1])
    last = int(match[2]) if match[2] is not None else first
    return (first, last) if first <= last else None


def current_segments(names: Iterable[str]) -> list[str]:
    """The segments among some files, in order, without those that another one replaces."""
    spans = {name: span for name in names if (span := segment_span(name)) is not None}
    kept: list[str] = []
    end = -1
    for name in sorted(spans, key=lambda name: (spans[name][0], -spans[name][1], name)):
        if spans[name][1] > end:
            kept.append(name)
            end = spans[name][1]
    return kept

"""Several processes, one recording: what rank 0 and the other ranks do about the same training.

No collective is added to the training: ranks may diverge, skip a step or die, and a collective would wait for them.
Every rank above 0 (``Member``) posts its rows and findings; rank 0 (``Leader``) collects them, merges the rows of each
step when all are there, and writes. All talking is done by one background thread per rank, so that a finding of rank 1
gets to the disk while rank 0 hangs in a collective that rank 1 will never enter.
"""

from typing import TYPE_CHECKING

from dgm_tb.callback.distributed.leader import Leader
from dgm_tb.callback.distributed.mailbox import open_mailbox
from dgm_tb.callback.distributed.member import Member
from dgm_tb.callback.say import warn

if TYPE_CHECKING:
    from dgm_tb.callback.recorder import Recorder

__all__ = ["Leader", "Member", "join_team"]


def join_team(recorder: "Recorder") -> Leader | Member | None:
    """The part of this process in a recording of several; None if it trains alone, or if the ranks can't talk."""
    try:
        mailbox = open_mailbox()
        if mailbox is None:
            return None
        return Leader(recorder, mailbox) if mailbox.rank == 0 else Member(recorder, mailbox)
    except Exception as error:
        warn(f"the ranks can't talk, rank 0 records its own numbers only: {type(error).__name__}: {error}")
        return None

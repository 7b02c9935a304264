"""Messages between the ranks of one training, through the key-value store that made its process group.

Letters go from every rank to rank 0, notices from rank 0 to all. Nobody waits for anybody: a letter lies in the store
(in rank 0's memory, or the launcher's) until it is collected.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.distributed as dist

from dgm_tb.callback.alone import is_distributed
from dgm_tb.records import as_json

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK_BYTES = 2 << 20
"""Letters are cut into pieces of this size: a TCPStore closes the connection on values above 8 MB."""


class Mailbox:
    """One recording's messages. Methods may raise whatever the store raises.

    Args:
        store: Seen by all ranks, used for nothing else.
        rank: This process.
        world_size: Number of processes.

    Attributes:
        n_posted: Letters posted by this rank.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.n_posted = 0
        self._store = store
        self._sent = 0
        self._notices = 0
        self._next = dict.fromkeys(range(1, world_size), 0)
        self._begun: dict[int, list[bytes]] = {rank: [] for rank in self._next}

    def post(self, letter: bytes) -> None:
        """Send a letter to rank 0."""
        pieces = [letter[start : start + CHUNK_BYTES] for start in range(0, len(letter), CHUNK_BYTES)]
        for number, piece in enumerate(pieces):
            is_last = number == len(pieces) - 1
            self._store.set(f"letter/{self.rank}/{self._sent}", bytes([is_last]) + piece)
            self._sent += 1
        self.n_posted += 1

    def collect(self) -> list[tuple[int, bytes]]:
        """Rank 0: take what has come, in the order of each rank, with the rank."""
        letters = []
        for rank in self._next:
            while self._store.check([key := f"letter/{rank}/{self._next[rank]}"]):
                piece = self._store.get(key)
                self._store.delete_key(key)
                self._next[rank] += 1
                self._begun[rank].append(piece[1:])
                if piece[0]:
                    letters.append((rank, b"".join(self._begun[rank])))
                    self._begun[rank] = []
        return letters

    def confirm(self, rank: int, n_letters: int) -> None:
        """Rank 0: tell a rank how many of its letters need not be kept in mind any more."""
        self._store.set(f"confirmed/{rank}", str(n_letters))

    def n_confirmed(self) -> int:
        """How many of this rank's letters rank 0 is done with."""
        key = f"confirmed/{self.rank}"
        return int(self._store.get(key)) if self._store.check([key]) else 0

    def announce(self, notice: Mapping[str, Any]) -> None:
        """Rank 0: tell all ranks something."""
        self._store.set(f"notice/{self._notices}", json.dumps(notice))
        self._notices += 1

    def notices(self) -> list[dict[str, Any]]:
        """What rank 0 has announced since this was last asked."""
        found = []
        while self._store.check([key := f"notice/{self._notices}"]):
            found.append(json.loads(self._store.get(key)))
            self._notices += 1
        return found


def open_mailbox() -> Mailbox | None:
    """The mailbox of a recording that begins now on all ranks; None if this process trains alone.

    Every rank numbers its recordings in the store itself, so that those of one process group never mix.
    """
    if not is_distributed():
        return None
    from torch.distributed import distributed_c10d  # missing where torch was built without it

    store = distributed_c10d._get_default_store()
    if hasattr(store, "clone"):
        store = store.clone()  # a connection of our own: theirs may be waiting for something
    rank = dist.get_rank()
    number = store.add(f"dgm_tb/recordings/{rank}", 1)
    return Mailbox(distributed_c10d.PrefixStore(f"dgm_tb/{number}", store), rank, dist.get_world_size())


def pack(body: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A JSON-able body and named arrays as bytes."""
    layout = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    header = json.dumps({"body": as_json(body), "arrays": layout}, allow_nan=False).encode()
    buffers = [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
    return b"".join([struct.pack("<I", len(header)), header, *buffers])


def unpack(letter: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """What ``pack`` was given; non-finite numbers of the body are strings, as ``records.as_json`` gives them."""
    (size,) = struct.unpack_from("<I", letter)
    header = json.loads(letter[4 : 4 + size])
    arrays, start = {}, 4 + size
    for name, (dtype, shape) in header["arrays"].items():
        array = np.frombuffer(letter, dtype, int(np.prod(shape)), start).reshape(shape)
        arrays[name], start = array, start + array.nbytes
    return header["body"], arrays

"""One thread: small models train faster, and losses are the same bit for bit in every run. Processes that end."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from processes import Processes


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*(num_workers|does not have many workers|isinstance\(treespec).*")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loops() -> Iterator[Processes]:
    """Processes that record a plain loop; see ``loop_worker.py``."""
    server = Processes("loop_worker.py")
    yield server
    server.close()

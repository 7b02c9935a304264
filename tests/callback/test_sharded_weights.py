"""Of weights sharded over two processes, the sums of squares that each gives add up to those of the whole (FSDP2)."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dgm_tb.callback.weights import WeightWatch

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("this torch has no fully_shard", allow_module_level=True)

N_PROCESSES = 2
N_STEPS = 3


class Net(nn.Module):
    """Shards of uneven size and of none, of rows, of inputs and of the rows of a table; ``whole`` is not sharded."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.recurrent = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        self.attention = nn.MultiheadAttention(10, 2)
        self.maps = nn.Sequential(nn.ConvTranspose1d(6, 4, 3, groups=2), nn.ConvTranspose1d(4, 9, 3))
        self.scales = nn.ConvTranspose1d(9, 6, 2, groups=3)
        self.norm = nn.BatchNorm1d(6)
        self.narrow, self.whole = nn.Linear(10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(self.table(x))
        states, _ = self.attention(states, states, states)
        maps = self.norm(self.scales(self.maps(self.table(x).mT)))
        return self.narrow(states).square().mean() + self.whole(states).square().mean() + (maps**3).mean()


def _by_rows() -> Net:
    net = Net()
    for module in (net.table, net.recurrent, net.attention, net.maps, net.narrow):
        fsdp.fully_shard(module)
    return fsdp.fully_shard(net, ignored_params=set(net.whole.parameters()))


def _replicated() -> Net:
    """Each process holds all, as a replica of the other's."""
    mesh = dist.init_device_mesh("cpu", (N_PROCESSES, 1), mesh_dim_names=("replicas", "shards"))
    return fsdp.fully_shard(Net(), mesh=mesh)


def _by_inputs() -> Net:
    """Matrices are sharded along their second axis."""
    from torch.distributed.tensor import Shard

    return fsdp.fully_shard(Net(), shard_placement_fn=lambda p: Shard(1) if p.shape[1:2] == (10,) else None)


@contextlib.contextmanager
def _no_messages() -> Iterator[None]:
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as messages:
        yield
    assert messages.get_total_counts() == 0, messages.get_comm_counts()


def _check(shard: Callable[[], Net]) -> None:
    """Train a sharded and a whole model alike, and compare what is known of their weights and gradients."""
    torch.manual_seed(0)
    sharded = shard()
    torch.manual_seed(0)
    whole = Net()
    models = [(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)) for model in (sharded, whole)]
    x = torch.randint(7, (4, 6))
    with torch.no_grad():  # FSDP2 leaves the root's weights together after this, until a backward pass
        sharded(x), whole(x)
    with _no_messages():
        watch = WeightWatch(sharded)
    reference = WeightWatch(whole)
    assert watch.is_sharded
    assert watch.entries == reference.entries
    assert not [note for note in watch.take_notes() if "not recorded" in note]
    for _ in range(N_STEPS):
        with _no_messages():
            watch.begin()
        reference.begin()
        for model, optimizer in models:
            optimizer.zero_grad()
            model(x).backward()
        _compare_gradients(watch, reference, sharded, whole)
        for _, optimizer in models:
            optimizer.step()
        with _no_messages():
            norms = watch.norms()
            squares = watch.end(norms)
            assert watch.nonfinite_parameters() == []
            assert watch.before == []
        dist.all_reduce(squares)
        torch.testing.assert_close(squares, reference.end(reference.norms()), rtol=1e-4, atol=1e-12)


def _compare_gradients(watch: WeightWatch, reference: WeightWatch, sharded: nn.Module, whole: nn.Module) -> None:
    with _no_messages():
        norms = watch.gradient_norms(sharded.parameters())
    wanted = reference.gradient_norms(whole.parameters())
    assert norms.keys() == wanted.keys()
    squares = torch.stack(list(norms.values())).square()
    dist.all_reduce(squares)
    torch.testing.assert_close(squares.sqrt(), torch.stack(list(wanted.values())), rtol=1e-4, atol=1e-9)


def _work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=N_PROCESSES)
    for shard in (_by_rows, _replicated, _by_inputs):
        _check(shard)
    _check_that_messages_are_seen()
    _check_nan(rank)
    _check_parametrized()
    dist.destroy_process_group()


def _check_that_messages_are_seen() -> None:
    with pytest.raises(AssertionError), _no_messages():
        next(_by_rows().parameters()).full_tensor()


def _check_nan(rank: int) -> None:
    """NaN is seen by the process that holds it."""
    net = fsdp.fully_shard(nn.Linear(2, 4))
    watch = WeightWatch(net)
    with torch.no_grad():
        net.weight.to_local()[1, 0] = [0.0, float("nan")][rank]
    assert watch.nonfinite_parameters() == [[], ["weight"]][rank]
    assert torch.isnan(watch.norms()).tolist() == [False, False, False, rank == 1]


def _check_parametrized() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    watch = WeightWatch(fsdp.fully_shard(net))
    assert [entry.module for entry in watch.entries] == ["0"]
    assert any("weights of 1 are not recorded" in note for note in watch.take_notes())


def test_sums_of_squares_add_up_to_those_of_the_whole_without_a_message(tmp_path: Path) -> None:
    mp.spawn(_work, (str(tmp_path / "store"),), nprocs=N_PROCESSES)

"""A plain loop of two processes, for ``test_plain_distributed.py``: ``plain_worker.py <folder> <rank> <scale>``."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dgm_tb

ABNORMAL = 21


def main(folder: Path, rank: int, scale: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = torch.rand(48, 64, generator=torch.Generator().manual_seed(1))
    data[ABNORMAL] *= scale
    dataset = TensorDataset(data)
    loader = DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset, shuffle=True, seed=3))
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses, norms = [], []
    with dgm_tb.record(model, folder / "run", max_overhead=None, on_finding="ignore", ring_steps=100) as recorder:
        for (x,) in loader:
            loss = nn.functional.mse_loss(model(x), x)
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.01)))
            optimizer.step()
            losses.append(float(loss.detach()))
            recorder.step(loss)
        steps = recorder._recorder.ring.steps
        recorded = [float(torch.tensor(list(step.gradient_norms.values())).norm()) for step in steps]
    torch.save({"losses": losses, "norms": norms, "recorded": recorded}, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))

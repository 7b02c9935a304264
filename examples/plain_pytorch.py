"""Record a plain PyTorch loop, without Lightning: the recorder knows what to do in a step, the loop says when.

    python examples/plain_pytorch.py
    tensorboard --logdir runs

Findings come as with Lightning; only the second run of a failing step needs Lightning's ``training_step``.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from dgm_tb.callback.options import Options
from dgm_tb.callback.recorder import Recorder

FOLDER = Path("runs/plain")


def main() -> None:
    torch.manual_seed(0)
    images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    facts = {"model": "AutoEncoder", "versions": {"torch": torch.__version__}, "resume_step": 0}
    recorder = Recorder(model, Options(), FOLDER / "plugins" / "dgmtracker", facts)

    try:
        for step in range(300):
            indices = torch.randint(len(images), (32,))
            batch = images[indices]
            recorder.begin_step(batch, step, indices.tolist())
            loss = nn.functional.mse_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            recorder.note_gradients(model.parameters())
            optimizer.step()
            recorder.note_loss("loss", loss)
            recorder.end_step(step + 1)
    except Exception as error:
        recorder.fail(error, step)
        raise
    recorder.close("finished")
    print(f"recorded {step + 1} steps in {FOLDER}, loss {loss.item():.4f}")


if __name__ == "__main__":
    main()

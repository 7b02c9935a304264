"""A plain loop's recorder knows which examples of the data set are in a batch, or says that it can't know."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import images
from test_dataset_indices import Numbered, Stream
from torch import Tensor, nn
from training import Recording, loader

import dgm_tb

ABNORMAL = 21


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def _indices(train: Any, folder: Path, use: Any, **options: Any) -> tuple[list[list[int]], list[list[int] | None]]:
    """The numbers in the images that a model is trained on, and what the recording says they are."""
    model, seen = _Linear(), []
    with dgm_tb.record(model, folder, ring_steps=1000, on_finding="ignore", **options) as recorder:
        for x, keywords in use(train, model):
            seen.append([int(number) for number in x.reshape(len(x), -1)[:, 0]])
            model(x).sum().backward()
            recorder.step(0.0, **keywords)
    rows = Recording.of(folder).kind("ring")[-1].arrays["indices"]
    return seen, [[int(index) for index in row if index >= 0] or None for row in rows]


def _as_given(train: Any, model: nn.Module) -> Iterator[Any]:
    for _ in range(2):
        for x, _ in train:
            yield x, {}


def _moved(train: Any, model: nn.Module) -> Iterator[Any]:
    """As on a GPU: the model gets copies."""
    return ((x.clone(), keywords) for x, keywords in _as_given(train, model))


def _changed(train: Any, model: nn.Module) -> Iterator[Any]:
    """Other values, too, but for the first, which tells the number."""
    for x, keywords in _as_given(train, model):
        y = x * 0.5
        y[:, 0, 0, 0] = x[:, 0, 0, 0]
        yield y, keywords


def _ahead(train: Any, model: nn.Module) -> Iterator[Any]:
    """The next batch is drawn and moved before the current one is used."""
    for _ in range(2):
        following = None
        for x, _ in train:
            if following is not None:
                yield following, {}
            following = x.clone()
        yield following, {}


def _in_pieces(train: Any, model: nn.Module) -> Iterator[Any]:
    return (
        (x[at : at + 3].view(-1, 1, 8, 8), {}) for x, _ in _as_given(train, model) for at in (0, 3, 6) if x[at:].any()
    )


def _stopping_early(train: Any, model: nn.Module) -> Iterator[Any]:
    for _ in range(3):
        for number, (x, _) in enumerate(train):
            if number == 3:
                break
            yield x, {}


def _with_validation(train: Any, model: nn.Module) -> Iterator[Any]:
    validation = loader(images(), shuffle=False, batch_size=8)
    for x, keywords in _moved(train, model):
        with torch.no_grad():
            for other, _ in validation:
                model(other)
        yield x, keywords


def _told(train: Any, model: nn.Module) -> Iterator[Any]:
    """No loader: whoever knows the indices tells them."""
    for indices in torch.arange(44).split(8):
        batch = torch.stack([Numbered()[int(index)][0] for index in indices])
        yield batch * 1.0, {"batch": batch, "indices": indices.tolist()}


def _named(train: Any, model: nn.Module) -> Iterator[Any]:
    """Two loaders; the batch is named, since the model gets it changed."""
    for (x, _), _ in zip(train, loader(Numbered(), seed=9), strict=True):
        yield x * 1.0, {"batch": x}


USES = [_as_given, _moved, _changed, _ahead, _in_pieces, _stopping_early, _with_validation, _told, _named]


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "persistent_workers": True}], ids=["", "workers"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_indices_are_those_of_the_examples(use: Any, options: dict[str, Any], tmp_path: Path) -> None:
    seen, known = _indices(loader(Numbered(), **options), tmp_path, use)
    assert len(seen) >= 6
    assert known == seen


def test_indices_are_unknown_where_they_cannot_be_known(tmp_path: Path) -> None:
    in_memory = [(torch.rand(8, 1, 8, 8), None) for _ in range(4)]
    for number, train in enumerate([loader(Stream(), shuffle=False), in_memory]):
        _, known = _indices(train, tmp_path / str(number), _as_given)
        assert set(map(str, known)) == {"None"}


def test_a_validation_batch_is_not_taken_for_one_that_was_never_drawn(tmp_path: Path) -> None:
    in_memory = [(torch.rand(8, 1, 8, 8), None) for _ in range(4)]
    _, known = _indices(in_memory, tmp_path, _with_validation)
    assert set(map(str, known)) == {"None"}

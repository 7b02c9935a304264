"""Where in an output the neurons are, and where the examples: the axes that torch's documentation gives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dgm_tb.callback.axes import batch_orders
from dgm_tb.callback.slots import Slot, floating_outputs, new_slot

B, T, F = 4, 6, 8  # examples, time steps, features


def _slots(root: nn.Module, run: Callable[[], object], n_examples: int | None = B) -> dict[str, Slot]:
    """The slots of everything that ``run`` calls."""
    slots: dict[str, Slot] = {}
    orders = batch_orders(root)

    def observe(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: object) -> None:
            for suffix, tensor in floating_outputs(output, module):
                order, key = orders[name], name + suffix
                slots[key] = new_slot(key, name, module, tensor, 0, input_axis=None, order=order, n_examples=n_examples)

        return hook

    handles = [module.register_forward_hook(observe(name)) for name, module in root.named_modules() if name]
    run()
    for handle in handles:
        handle.remove()
    return slots


def _axes(module: nn.Module, *inputs: Tensor, n_examples: int | None = B, **options: bool) -> list[int | None]:
    root = nn.ModuleList([module])
    slots = _slots(root, lambda: module(*inputs, **options), n_examples)
    return [slot.example_axis for name, slot in slots.items() if name.partition("[")[0] == "0"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [T, B, 1])
def test_recurrent_layers_have_examples_where_batch_first_says(kind: type, batch_first: bool, length: int) -> None:
    layer = kind(F, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    shape = (B, length, F) if batch_first else (length, B, F)
    output, *states = _axes(layer, torch.randn(shape))
    assert output == (0 if batch_first else 1)
    assert states == [1] * (2 if kind is nn.LSTM else 1), "states are [layers, examples, units] either way"


def test_packed_and_single_sequences_have_no_axis_of_examples() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(T, B, F), torch.tensor([6, 4, 3, 1]))
    assert _axes(nn.GRU(F, 5), packed) == [None, 1]  # type: ignore[arg-type]
    assert _axes(nn.GRU(F, 5), torch.randn(B, F)) == [None, None]
    assert _axes(nn.MultiheadAttention(F, 2), *[torch.randn(B, F)] * 3) == [None]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [T, B])
def test_everything_inside_a_transformer_has_its_order(batch_first: bool, length: int) -> None:
    layer = nn.TransformerEncoderLayer(F, 2, 16, batch_first=batch_first)
    root = nn.Sequential(nn.TransformerEncoder(layer, 2, nn.LayerNorm(F), enable_nested_tensor=False), nn.Linear(F, 3))
    x = torch.randn(*((B, length) if batch_first else (length, B)), F)
    slots = _slots(root, lambda: root(x))
    inside = {name: slot.example_axis for name, slot in slots.items() if name.startswith("0.")}
    assert {"0.layers.1.self_attn", "0.layers.0.linear1", "0.layers.0.dropout1", "0.norm"} <= set(inside)
    assert set(inside.values()) == {0 if batch_first else 1}
    unknown = not batch_first and length == B
    assert slots["1"].example_axis == (None if unknown else 0 if batch_first else 1), "outside, sizes must tell"


def test_without_a_known_number_of_examples_the_order_decides() -> None:
    assert _axes(nn.Linear(F, 2), torch.randn(3, 3, F), n_examples=None) == [0]
    assert _axes(nn.Linear(F, 2), torch.randn(3, F), n_examples=None) == [0]
    assert _axes(nn.LSTM(F, 2), torch.randn(3, 3, F), n_examples=None)[0] == 1


def test_examples_come_first_unless_sizes_say_otherwise() -> None:
    assert _axes(nn.Conv2d(2, 3, 1), torch.randn(B, 2, 5, 5)) == [0]
    assert _axes(nn.Conv2d(2, 3, 1), torch.randn(7, 2, 5, 5)) == [0], "channels are axis 1, so it can't be another"
    assert _axes(nn.Linear(F, 2), torch.randn(B, F)) == [0]
    assert _axes(nn.Linear(F, B), torch.randn(T, F)) == [None], "neurons are no examples"
    assert _axes(nn.LSTMCell(F, B), torch.randn(B, F)) == [0, 0]
    assert _axes(nn.Linear(F, 2), torch.randn(T, B, F)) == [1]
    assert _axes(nn.Linear(F, 2), torch.randn(B, B, F)) == [0]
    assert _axes(nn.LayerNorm(F), torch.randn(B, 5, 5, F)) == [0]
    assert _axes(nn.Linear(F, 2), torch.randn(T * B, F)) == [None]


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_weights_are_recorded_per_head_or_not_at_all(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(F, 2, batch_first=batch_first)
    x = torch.randn(B, T, F) if batch_first else torch.randn(T, B, F)
    root = nn.ModuleList([layer])
    slots = _slots(root, lambda: layer(x, x, x, average_attn_weights=False))
    assert list(slots) == ["0", "0[1]"]
    assert (slots["0"].neurons, slots["0"].example_axis) == (F, 0 if batch_first else 1)
    heads = slots["0[1]"]
    assert (heads.neurons, heads.is_last_axis, heads.example_axis) == (2, False, 0)
    assert heads.shape == (B, 2, T, T)
    for options in ({}, {"need_weights": False}):
        assert list(_slots(root, lambda o=options: layer(x, x, x, **o))) == ["0"]

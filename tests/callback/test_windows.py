"""What a window says of its steps: values that were measured and are not finite are never averaged away."""

import numpy as np

from dgm_tb.callback.windows import Row, Windows

LAYERS = [(0, 3), (3, 2)]


def _dynamics(values: np.ndarray) -> dict[str, np.ndarray]:
    """The aggregates of one window of activation means ``[steps, neurons]``."""
    windows = Windows(len(values))
    windows.layers = {quantity: LAYERS for quantity in ("activation", "gradient", "weight", "update")}
    for step, row in enumerate(values):
        every = np.repeat(row[None], 5, 0).astype(np.float32)
        windows.add(Row(step, step, {}, quantities={"activation": every, "gradient": every[:1]}))
    record = next(r for r in windows.take() if r.kind == "dynamics" and r.body["quantity"] == "activation")
    names = record.body["aggregates"]
    return {name: record.arrays["values"][:, 0, number] for number, name in enumerate(names)}


def test_a_nan_of_one_step_is_seen_and_leaves_the_extremes() -> None:
    values = np.arange(20.0).reshape(4, 5)
    values[2, 1] = np.nan
    found = _dynamics(values)
    assert np.isnan(found["mean/mean"]).tolist() == [False, True, False, False, False]
    assert (found["mean/min"][1], found["mean/max"][1]) == (1, 16)
    assert found["mean/mean"][0] == 7.5


def test_an_infinity_of_one_step_is_seen() -> None:
    values = np.ones((4, 5))
    values[1, 3] = np.inf
    assert _dynamics(values)["mean/mean"].tolist() == [1, 1, 1, np.inf, 1]


def test_a_layer_that_was_not_called_in_a_step_is_averaged_over_the_others() -> None:
    values = np.arange(20.0).reshape(4, 5)
    values[0, 3:] = np.nan
    assert _dynamics(values)["mean/mean"].tolist() == [7.5, 8.5, 9.5, 13, 14]

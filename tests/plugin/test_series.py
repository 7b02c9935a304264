"""What a run hands out as data frames, against arrays that are known; and what is said without pandas."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import sample_recording as sample
from sample_recording import LOSS_STEPS, WINDOW

from dgm_tb import open_run
from dgm_tb.errors import MissingPackageError, UnknownNameError
from dgm_tb.plugin.run import Run

WINDOW_ENDS = LOSS_STEPS[WINDOW - 1 :: WINDOW]
TABLES: dict[str, Callable[[Run], object]] = {
    "series": lambda run: run.losses["train_loss"].to_pandas(),
    "dynamics": lambda run: run.dynamics("fc").to_pandas(),
    "contribution": lambda run: run.contribution("conv", "fc", 0).to_pandas(),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder: Path = tmp_path_factory.mktemp("run")
    sample.write(folder, sample.all_records())
    return open_run(folder)


def test_a_loss_is_a_series_by_step(run: Run) -> None:
    expected = pandas.Series(sample.loss_values()[:, 0], pandas.Index(LOSS_STEPS, name="step"))
    pandas.testing.assert_series_equal(run.losses["train_loss"].to_pandas(), expected)


def test_losses_of_different_steps_join_to_a_table(run: Run) -> None:
    frame = pandas.DataFrame({name: loss.to_pandas() for name, loss in run.losses.items()})
    expected = sample.loss_values()
    expected[1::2, 1] = np.nan
    assert list(frame) == ["train_loss", "d_loss"]
    np.testing.assert_array_equal(frame.to_numpy(), expected)


@pytest.mark.parametrize(("of", "aggregate"), [("values", "mean/mean"), ("low", "mean/min"), ("high", "mean/max")])
def test_dynamics_are_a_table_of_steps_by_neurons(run: Run, of: str, aggregate: str) -> None:
    frame = run.dynamics("fc").to_pandas(of)
    index, columns = pandas.Index(WINDOW_ENDS, name="step"), pandas.Index(range(4), name="neuron")
    values = sample.window_values("activation", aggregate)[sample.span_of("fc")].T
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame(values, index, columns), check_index_type=False)


def test_columns_of_polylines_are_the_numbers_of_the_sampled_neurons(run: Run) -> None:
    sampled = run.polylines("fc", k=1)
    frame = sampled.to_pandas()
    assert list(frame.columns) == sampled.neurons.tolist() != list(range(len(sampled.neurons)))
    expected = sample.neuron_values("activation", "mean")[sample.span_of("fc")][sampled.neurons].T
    np.testing.assert_array_equal(frame.to_numpy(), expected)


@pytest.mark.parametrize(("of", "said"), [("low", "there are values, high"), ("mean", "there are values, high")])
def test_what_is_not_kept_of_a_window_is_named(run: Run, of: str, said: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no '{of}' of these neurons; {said}"):
        run.dynamics("fc", "gradient").to_pandas(of)


def test_contributions_are_a_table_of_targets_by_sources(run: Run) -> None:
    matrix = run.contribution("fc", "out", 0)
    frame = matrix.to_pandas()
    assert (frame.index.name, frame.columns.name) == ("target", "source")
    assert frame.shape == (5, 4)
    assert frame.loc[3, 2] == matrix[3, 2] == sample.contribution_values("out", "channel")[3, 2]
    with pytest.raises(ValueError, match="target neurons, source neurons"):
        matrix[0].to_pandas()


@pytest.mark.parametrize("table", TABLES)
def test_writing_into_a_table_leaves_the_run_as_it_was(run: Run, table: str) -> None:
    changed = TABLES[table](run)
    before = changed.copy()
    changed.iloc[:] = -1.0
    assert before.equals(TABLES[table](run))


@pytest.mark.parametrize("table", TABLES)
def test_without_pandas_the_error_says_what_to_install(run: Run, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="to_pandas needs the package pandas: pip install pandas") as caught:
        TABLES[table](run)
    assert isinstance(caught.value, ImportError)
    assert "\n" not in str(caught.value)

"""Whatever a file holds and a client asks: proper answers, in finite time and memory.

``DGM_TB_FUZZ_SECONDS=600 pytest tests/plugin/test_fuzz.py -k seeds`` looks for that long at recordings not seen before.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import mutations
import pytest
import sample_recording as sample
from asking import ARGUMENTS, NO_NUMBERS, NUMBERS, TEXTS, ask, ask_everything, make_client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto import event_pb2
from werkzeug.test import Client

from dgm_tb.framing import frame
from dgm_tb.records import encode

ASKING = Path(__file__).with_name("asking.py")
SEEDS = 60
SECONDS = float(os.environ.get("DGM_TB_FUZZ_SECONDS", "0"))
FEW_ARENAS = {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
SEEDED = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def run_asking(*arguments: str) -> str:
    """What the program says: it may have so much memory, and its requests so much time, and no warnings."""
    command = [sys.executable, "-W", "error::RuntimeWarning", str(ASKING), *arguments]
    ended = subprocess.run(
        command, env={**os.environ, **FEW_ARENAS}, capture_output=True, text=True, timeout=SECONDS + 300
    )
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


def test_mutated_recordings_of_many_seeds_are_answered_properly() -> None:
    if SECONDS:
        first = random.SystemRandom().randrange(10**9)
        print(run_asking("--seeds", f"{first}:", "--seconds", str(SECONDS)))
    else:
        assert f"{SEEDS} recordings asked" in run_asking("--seeds", f"0:{SEEDS}")


def test_small_files_that_claim_much_take_little() -> None:
    assert "long names" in run_asking("--greedy")


# -- with hypothesis, which finds the smallest failing case ------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(mutations.VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PAYLOADS = [encode(record) for record in sample.all_records()]
BODIES = [mutations.body_of(event_pb2.Event.FromString(payload)) for payload in PAYLOADS]
PLACES = [(number, path) for number, body in enumerate(BODIES) for path in mutations.places(body)]


@settings(SEEDED, max_examples=40)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=4))
def test_any_json_in_the_place_of_any_value_is_answered_properly(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[int, tuple[Any, ...]], Any]]
) -> None:
    bodies = json.loads(json.dumps(BODIES))
    for (number, path), value in changes:
        try:
            mutations.put(bodies[number], path, value)
        except (KeyError, TypeError, IndexError):  # an earlier change took the place away
            continue
    events = [event_pb2.Event.FromString(payload) for payload in PAYLOADS]
    for event, body in zip(events, bodies, strict=True):
        mutations.set_body(event, body)
    folder = tmp_path_factory.mktemp("run")
    path = sample.write(folder, [])
    path.write_bytes(b"".join(frame(mutations.payload(event)) for event in events))
    ask_everything(folder, random.Random(0))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("run")
    sample.write(folder, sample.all_records())
    return make_client(folder)


NAMES = sorted({name for names in ARGUMENTS.values() for name in names})
GOOD = [".", *sample.FLOW, "activation", "weight", "mean", "f1", "batch", "backward"]
ANY_VALUE = st.sampled_from([*GOOD, *TEXTS, *NUMBERS, *NO_NUMBERS]) | st.text(max_size=20) | st.integers().map(str)


@settings(SEEDED, max_examples=400)
@given(
    route=st.sampled_from(list(ARGUMENTS)),
    query=st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=5), ANY_VALUE), max_size=6),
    is_of_the_run=st.booleans(),
)
def test_any_query_is_answered_properly(
    intact: Client, route: str, query: list[tuple[str, str]], is_of_the_run: bool
) -> None:
    if is_of_the_run:
        query = [("run", "."), *(item for item in query if item[0] != "run")]
    ask(intact, route, query)

"""Small decisions of the views."""

import pytest

from dgm_tb.graph import Layer
from dgm_tb.plugin.views import _layer_of


@pytest.mark.parametrize(
    ("module", "slot"),
    [("net.0", "net.0"), ("net.1", "net.1@1"), ("net", "net.0"), ("ne", ""), ("", ""), ("other", "")],
)
def test_a_finding_focuses_its_modules_layer_or_the_first_one_inside(module: str, slot: str) -> None:
    layers = [Layer(name, name.partition("@")[0], "Linear", 1, 0) for name in ("net.0", "net.1@1", "net.1")]
    assert _layer_of(module, layers) == slot

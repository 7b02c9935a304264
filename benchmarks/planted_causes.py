"""How often contributions name the kernel that was changed, for three kinds of reference (tests/planted.py).

python benchmarks/planted_causes.py [--trials 100]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from planted import RULES, a_normal_image, an_earlier_snapshot, another_network, shares_of_hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    n_trials = parser.parse_args().trials
    torch.set_num_threads(1)
    for make in (another_network, an_earlier_snapshot, a_normal_image):
        n_live, shares = shares_of_hits(make, list(RULES), n_trials)
        figures = ", ".join(f"{key} {share:.2f}" for key, share in shares.items())
        print(f"{make.__name__.replace('_', ' '):20s} {n_live} of {n_trials} live: {figures}", flush=True)


if __name__ == "__main__":
    main()

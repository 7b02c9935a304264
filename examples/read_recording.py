"""Read a recording with NumPy: which layers change fastest, and which neurons of them lead.

python examples/read_recording.py RUN_FOLDER
"""

import sys

import numpy as np

from dgm_tb import open_run


def main(folder: str) -> None:
    run = open_run(folder)
    for finding in run.findings:
        print(f"{finding.severity}: {finding.summary}")
    print(f"{'layer':28} {'update ratio':>12} {'gradient':>10} {'dead':>6}  leading neurons")
    modules = {layer.name: layer.module for layer in run.graph.layers}
    weighted = {weight.module for weight in run.graph.weights}
    for layer in run.layers:
        gradient = run.layer_statistics(layer, "gradient")["rms"].values
        activation = run.dynamics(layer, "activation", "std").values
        dead = float(np.mean(np.nanmax(activation, axis=1) == 0))
        if modules[layer] in weighted:
            update = run.dynamics(layer, "update", "ratio").values
            ratio, leading = f"{np.nanmedian(update):.2e}", np.argsort(-np.nanmean(update, axis=1))[:5].tolist()
        else:
            ratio, leading = "-", []
        print(f"{layer:28} {ratio:>12} {np.nanmedian(gradient):>10.2e} {dead:>6.0%}  {leading or ''}")


if __name__ == "__main__":
    main(sys.argv[1])

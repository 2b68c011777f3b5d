"""Write the files of ``refquant demo``: the network that torch quantized, and torch's results.

Run from the repository with torch installed: ``python examples/record_demo.py``.
"""

from pathlib import Path

import digits
import numpy as np

import refquant
from refquant.importers import from_fx
from refquant.importers.fx_torch import record_fx
from refquant.ir.text import digest

DATA = Path(refquant.__file__).parent / "data"


def main() -> None:
    """Quantize with torch, save the graph, and record torch's value of every node."""
    model, inputs = digits.cnn()
    graph = from_fx(model, inputs)
    graph.save(DATA / "digits_cnn.rq")
    recorded = record_fx(model, inputs, graph.target)
    nodes = [node.name for node in graph.nodes]
    pixels = np.load(digits.DATA / "digits_data.npz")
    np.savez_compressed(
        DATA / "digits_cnn_torch.npz",
        images=pixels["Xt"],
        scale=pixels["scale"],
        labels=pixels["yt"],
        logits=recorded[graph.outputs[0].name],
        nodes=np.array(nodes),
        digests=np.array([digest(recorded[name]) for name in nodes]),
    )
    print(f"{DATA}: {len(nodes)} nodes, {len(pixels['Xt'])} images")


if __name__ == "__main__":
    main()

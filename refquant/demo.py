"""The demo: a network that torch quantized, run here without torch on real images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refquant.ir.file import load
from refquant.ir.graph import Executor, Node
from refquant.ir.qtensor import Tensor
from refquant.ir.text import digest

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class DemoRow:
    """One node and whether its result has the digest of torch's."""

    name: str
    op: str
    type: str
    equal: bool


@dataclass(frozen=True)
class DemoReport:
    """What the demo found."""

    images: int
    accuracy: float
    equal_logits: int
    total_logits: int
    rows: tuple[DemoRow, ...]

    @property
    def bit_exact(self) -> bool:
        """Whether every logit and every intermediate value is torch's."""
        return self.equal_logits == self.total_logits and all(row.equal for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self) | {"bit_exact": self.bit_exact}


def run_demo(executor: Executor = "fast") -> DemoReport:
    """Run the digits network and compare with the values recorded from torch.

    The recording (written by ``examples/record_demo.py``) holds torch's logits, and a digest of
    every intermediate value on all 450 images.
    """
    graph = load(_DATA / "digits_cnn.rq")
    recorded = np.load(_DATA / "digits_cnn_torch.npz")
    images = recorded["images"].astype(np.float32) / recorded["scale"]
    digests = dict(zip(recorded["nodes"].tolist(), recorded["digests"].tolist(), strict=True))
    rows: list[DemoRow] = []

    def check(node: Node, results: tuple[Tensor, ...]) -> None:
        equal = digests.get(node.name) == digest(results[0])
        rows.append(DemoRow(node.name, node.op, str(node.outputs[0].type), equal))

    logits = graph.run(images, executor=executor, observe=check).outputs
    accuracy = float((logits.argmax(1) == recorded["labels"]).mean())
    equal = int((logits == recorded["logits"]).sum())
    return DemoReport(len(images), accuracy, equal, logits.size, tuple(rows))

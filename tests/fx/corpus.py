"""Every case by name; split by topic into ``corpus_*.py``."""

from __future__ import annotations

import corpus_backends
import corpus_custom
import corpus_defects
import corpus_equalization
import corpus_fusion
import corpus_layers
import corpus_mappings
import corpus_ops
from flow import Case

CASES: dict[str, Case] = {}
for _topic in (
    corpus_backends,
    corpus_custom,
    corpus_defects,
    corpus_equalization,
    corpus_fusion,
    corpus_layers,
    corpus_mappings,
    corpus_ops,
):
    assert not CASES.keys() & _topic.CASES.keys()
    CASES |= _topic.CASES

# Not calibrated by us with equal bits: what has no rule yet, or sums up rounded values, whose
# order torch does not promise.
ROUNDS = "rounds"
ROUNDING = (
    *("levels:", "convert mapping:", "backend ", "own back-end: functions", "object type mapping"),
    *("tanh", "sigmoid", "hardsigmoid", "F.sigmoid", "nn.Tanh", "nn.Sigmoid", "nn.Hardsigmoid"),
    *("nn.Softmax", "F.elu", "nn.ELU", "F.hardswish", "nn.Hardswish", "F.leaky", "nn.Leaky"),
    *("nn.InstanceNorm", "F.instance_norm", "nn.LayerNorm", "F.layer_norm", "F.group_norm"),
    *("norms", "mean", "adaptive_avg_pool2d", "nn.Adaptive", "attention of", "torch.sub and div"),
)
NOT_CALIBRATED = {
    **{name: ROUNDS for name in CASES if name.startswith(ROUNDING)},
    **{name: "ConvAdd" for name in CASES if name.startswith("onednn") and "conv" in name},
    **{name: "corpus_custom" for name in CASES if name.startswith(("custom", "not traceable"))},
    **{name: "torch.nn.EmbeddingBag" for name in CASES if name.startswith("embedding bag")},
    "backend onednn": "ConvAdd",
    "a leaf of torch.nn is not traced": "torch.nn.TransformerEncoderLayer",
}
CALIBRATED = [
    name
    for name, case in CASES.items()
    if case.mode == "ptq" and not case.raises and case.equalization is None
]

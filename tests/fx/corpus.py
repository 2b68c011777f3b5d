"""Every case by name; split by topic into ``corpus_*.py``."""

from __future__ import annotations

import corpus_backends
import corpus_custom
import corpus_defects
import corpus_equalization
import corpus_fusion
import corpus_mappings
import corpus_ops
from flow import Case

CASES: dict[str, Case] = {}
for _topic in (corpus_backends, corpus_custom, corpus_defects, corpus_equalization, corpus_fusion, corpus_mappings, corpus_ops):
    assert not CASES.keys() & _topic.CASES.keys()
    CASES |= _topic.CASES

# Not calibrated by us with equal bits: what has no rule yet, or sums up rounded values.
ROUNDS = "rounds"
NOT_CALIBRATED = {
    **dict.fromkeys(
        (
            *("own back-end: functions and methods", "adaptive_avg_pool2d, shared"),
            *("object type mapping for a back-end's function", "mean, shared", "nn.Tanh"),
            *("tanh, fixed qparams", "tanh method, fixed qparams", "hardsigmoid, fixed qparams"),
            *("nn.Hardsigmoid", "nn.InstanceNorm2d", "nn.InstanceNorm3d", "nn.LayerNorm"),
            *("F.elu", "F.hardswish", "F.instance_norm", "F.layer_norm"),
            "attention of a transformer",
        ),
        ROUNDS,
    ),
    **{name: "ConvAdd" for name in CASES if name.startswith("onednn conv")},
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

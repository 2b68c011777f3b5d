"""What limits a missed target, by what a profile showed; printed only where one is missed.

Keys are ``section/other/start of the name``; the longest that fits is taken.
"""

_ENCODER = (
    "profile: half in the dynamic linears, a quarter in gelu (float64, rounded once), the rest "
    "in layer norms, softmax and float products"
)

REASONS: dict[str, str] = {
    "networks/fbgemm/LSTM": (
        "profile: a third in 67 dynamic linears of one row, the rest in some 840 operators on 512 "
        "elements, nearly all of which is the call"
    ),
    "networks/fbgemm/encoder": _ENCODER,
    "networks/onnxruntime/encoder": _ENCODER,
    "products/qnnpack/linear 1 x 1 x 1": "both sides are all call and no work",
    "products/qnnpack/linear 16 x 16 x 16": "both sides are all call and no work",
    "onnx.reference/onnx.reference/linear 64 x 64 x 64": (
        "nearly all of it is the call: it takes as long as 1 x 1 x 1"
    ),
    "onnx.reference/onnx.reference/linear 1 x 512 x 1000": (
        "half of it is the call; the rest reads each weight once"
    ),
}


def reason_of(section: str, other: str, name: str) -> str:
    """Return the reason, or an empty string."""
    whole = f"{section}/{other}/{name}"
    fits = [key for key in REASONS if whole.startswith(key)]
    return REASONS[max(fits, key=len)] if fits else ""

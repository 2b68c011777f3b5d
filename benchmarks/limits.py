"""What limits a missed target, by what a profile showed; printed only where one is missed.

Keys are ``section/other/start of the name``; the longest that fits is taken.
"""

_CONVOLUTIONS = (
    "profile: nineteen twentieths in convolutions, most of them at nine tenths of the peak; those "
    "with few products a sum, or with a sum of maps, wait for the last step and for memory"
)
_QNNPACK = (
    "large layers run on the same tile as under fbgemm, near the peak; small ones are mostly call"
)
_REFERENCE = "profile: all in NumPy's integer products; ours is near the peak"
_ENCODER = (
    "profile: half in the dynamic linears, a quarter in gelu (float64, rounded once), the rest "
    "in layer norms, softmax and float products"
)

REASONS: dict[str, str] = {
    "products/fbgemm/depthwise": (
        "profile: two thirds to three quarters in the tile, where shuffles and saturating pairs "
        "(two instructions for an exact product's one) fill the vector units; most of the rest "
        "lays the padded map, which networks do not need"
    ),
    "networks/fbgemm/ResNet": _CONVOLUTIONS,
    "networks/onnxruntime/ResNet": _CONVOLUTIONS,
    "networks/onnxruntime/MobileNetV2": (
        "profile: three fifths in pointwise convolutions whose sums are short, so that the last "
        "step takes as long as the products; a fifth in depthwise ones"
    ),
    "networks/qnnpack/ResNet": _QNNPACK,
    "networks/qnnpack/MobileNetV2": (
        "profile: two thirds in convolutions; relu6 scrambles channels-last maps, as torch's "
        "does, so that it cannot join its layer and the next one turns the map around"
    ),
    "products/qnnpack/": _QNNPACK,
    "peak/peak/": (
        "the last step and the driver, which short sums and small maps do not outweigh; rows that "
        "do not fill a tile are computed twice"
    ),
    "onnx.reference/onnx.reference/": "small layers: mostly the call",
    "onnx.reference/onnx.reference/conv": _REFERENCE,
    "onnx.reference/onnx.reference/linear 128 x 768 x 768": _REFERENCE,
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

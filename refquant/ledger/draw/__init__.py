"""How samples of each family of operators are drawn.

``SAMPLERS`` has a sampler by torch's name, ``DTYPES`` the dtypes to try where they are not the
quantized ones.
"""

from refquant.ir.types import DType
from refquant.ledger.cell import Sampler
from refquant.ledger.draw import (
    decomposed,
    embeddings,
    images,
    memory,
    moves,
    norms,
    pointwise,
    products,
    pt2e,
    quantize,
)

_FAMILIES = (
    *(quantize, products, pointwise, norms, images, moves),
    *(memory, embeddings, decomposed, pt2e),
)

SAMPLERS: dict[str, Sampler] = {
    name: sampler for family in _FAMILIES for name, sampler in family.SAMPLERS.items()
}
DTYPES: dict[str, tuple[DType, ...]] = {
    name: dtypes for family in _FAMILIES for name, dtypes in getattr(family, "DTYPES", {}).items()
}

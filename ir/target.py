"""The machine whose bits are meant: engine, instruction set and thread count."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache

from refquant.ir.errors import VerifyError


class Engine(StrEnum):
    """Which back end's numerics is reproduced.

    The first four are torch's (``torch.backends.quantized.engine``); ``onnx`` is the ONNX
    specification to the letter, ``ort`` onnxruntime's CPU kernels with optimisation off.
    """

    FBGEMM = "fbgemm"
    QNNPACK = "qnnpack"
    ONEDNN = "onednn"
    X86 = "x86"
    ONNX = "onnx"
    ORT = "ort"


ONNX_ENGINES = (Engine.ONNX, Engine.ORT)
TORCH_ENGINES = tuple(engine for engine in Engine if engine not in ONNX_ENGINES)


class Isa(StrEnum):
    """Which vector instructions torch's kernels use; see ``docs/targets.md``."""

    AVX512_VNNI = "avx512_vnni"
    AVX512 = "avx512"
    AVX2 = "avx2"
    DEFAULT = "default"


@dataclass(frozen=True)
class Target:
    """The machine that is reproduced.

    torch's bits depend on more than the formula: on the engine, on the vector width and on how
    many threads split a tensor.

    Parameters
    ----------
    engine : Engine or str
        Back end of the int8 operators.
    isa : Isa or str
        ``avx512`` and ``avx2`` are without VNNI: fbgemm's and oneDNN's sums of products saturate
        in pairs. ``default`` is torch without vector kernels (``ATEN_CPU_CAPABILITY=default``),
        its libraries keep theirs.
    threads : int, >= 1
        ``torch.get_num_threads()``; it moves the scalar tails of pointwise kernels above
        32,768 elements.

    Examples
    --------
    >>> print(Target("fbgemm"))
    fbgemm/avx512_vnni/threads=1
    >>> Target.parse("fbgemm/avx2/threads=4").isa
    <Isa.AVX2: 'avx2'>
    """

    engine: Engine = Engine.FBGEMM
    isa: Isa = Isa.AVX512_VNNI
    threads: int = 1

    def __post_init__(self) -> None:
        for field, kind in (("engine", Engine), ("isa", Isa)):
            value = getattr(self, field)
            try:
                object.__setattr__(self, field, kind(value))
            except ValueError:
                accepted = ", ".join(kind)
                raise VerifyError(f"target: {field} {value!r} is not one of {accepted}") from None
        if self.threads < 1:
            raise VerifyError(f"target: threads must be >= 1, got {self.threads}")
        known = self.isa is Isa.AVX512_VNNI and self.threads == 1
        if self.engine is Engine.ORT and not known:
            raise VerifyError(f"target: ort is known as ort/avx512_vnni/threads=1, got {self}")

    @cached_property
    def fused_multiply_add(self) -> bool:
        """Whether ATen's vector kernels contract ``a * b + c`` into one rounding."""
        return self.isa is not Isa.DEFAULT

    def __str__(self) -> str:
        return f"{self.engine}/{self.isa}/threads={self.threads}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read what ``str`` prints; parts after the engine may be left out."""
        return _parsed(text)


@lru_cache(maxsize=64)
def _parsed(text: str) -> Target:
    engine, *rest = text.split("/")
    isa = rest[0] if rest else Isa.AVX512_VNNI
    threads = rest[1].removeprefix("threads=") if len(rest) > 1 else "1"
    if len(rest) > 2 or not threads.isdecimal():
        raise VerifyError(f"target: expected engine/isa/threads=n, got {text!r}")
    return Target(Engine(engine) if engine in set(Engine) else engine, isa, int(threads))  # type: ignore[arg-type]

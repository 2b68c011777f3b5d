"""Rules of operators that work element by element, and of reductions."""

from __future__ import annotations

from refquant.importers.onnx_builder import Known, OnnxBuilder, Rule


def same(op: str) -> Rule:
    """Return the rule of an operator that is one of ours, without attributes."""

    def rule(b: OnnxBuilder, *operands: Known) -> Known:
        return b.emit(op, *operands)

    return rule


ELEMENTWISE: dict[str, Rule] = {
    "Add": same("aten::add"),
    "Div": same("aten::div"),
    "Mul": same("aten::mul"),
    "Relu": same("aten::relu"),
    "Sigmoid": same("aten::sigmoid"),
    "Sub": same("aten::sub"),
    "Tanh": same("aten::tanh"),
}

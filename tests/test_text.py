"""The text form: print, parse, equal; and clear errors for what is not a graph."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import ATTRIBUTES, chain, graphs, quantize
from hypothesis import given

from refquant.ir import Graph, VerifyError, parse
from refquant.ir.text import format_attribute


@given(graph=graphs())
def test_printing_and_parsing_gives_an_equal_graph(graph: Graph) -> None:
    text = str(graph)
    again = parse(text)
    assert again == graph
    assert again.nodes == graph.nodes
    assert again.inputs == graph.inputs
    assert again.outputs == graph.outputs
    assert again.returns == graph.returns
    assert again.provenance == graph.provenance
    assert str(again) == text


@given(graph=graphs())
def test_with_its_tensors_the_parsed_graph_holds_the_data(graph: Graph) -> None:
    tensors = dict(graph.parameters)
    for path, module in graph.modules.items():
        tensors |= {f"{path}/{key}": array for key, array in module.state.items()}
    again = parse(str(graph), tensors)
    for name, data in graph.parameters.items():
        np.testing.assert_array_equal(
            getattr(again.parameter(name), "int_repr", again.parameter(name)),
            getattr(data, "int_repr", data),
        )


@given(value=ATTRIBUTES)
def test_different_attributes_have_different_texts(value: object) -> None:
    assert format_attribute((value, 0)) != format_attribute((value, 1))  # type: ignore[arg-type]
    assert format_attribute((value, 0)) != format_attribute((value, 0.0))  # type: ignore[arg-type]


def test_a_changed_weight_changes_the_graph() -> None:
    graph = chain(quantize())
    graph.parameters["w"] = np.zeros(3, np.float32)
    other = chain(quantize())
    other.parameters["w"] = np.array([0, 0, 1], np.float32)
    assert graph != other


def test_data_that_is_not_what_the_text_declares_is_refused() -> None:
    graph = chain(quantize())
    graph.parameters["w"] = np.zeros(3, np.float32)
    with pytest.raises(VerifyError, match="w: the data is not what the text declares"):
        parse(str(graph), {"w": np.ones(3, np.float32)})


def test_a_graph_without_data_says_so_when_it_is_read() -> None:
    graph = chain(quantize())
    graph.parameters["w"] = np.zeros(3, np.float32)
    with pytest.raises(VerifyError, match="parameter w: this graph was parsed from text"):
        parse(str(graph)).parameter("w")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: empty"),
        ("refquant 2\n", "version 2 is not known; this refquant reads 1"),
        ("hello\n", "line 1: expected 'refquant'"),
        ("refquant 1\ninput %x : float33[1]\n", "line 2: expected one of the dtypes"),
        ("refquant 1\n%y = aten::relu(%x) : float32[1]\n", "line 2: expected a value that is def"),
        ("refquant 1\ninput %x : float32[1]\ninput %x : float32[1]\n", "line 3: .*defined twice"),
        ("refquant 1\ninput %x : float32[1] more\n", "line 2: expected the end of the line"),
        ('refquant 1\ninput %"x : float32[1]\n', "line 2: expected a token"),
        ('refquant 1\nstate !m "a" : float32[1] sha256:"00"\n', "line 2: .*m is not"),
        ("refquant 1\ninput %x : float32[1.5]\n", "line 2: expected a shape"),
        ("refquant 1\ninput %x : quint8<0.5>[1]\n", "line 2: expected ':'"),
    ],
)
def test_what_is_not_a_graph_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        parse(text)

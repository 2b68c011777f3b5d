"""Threads make layers faster and change nothing else."""

from __future__ import annotations

import os
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from test_plan import assert_same, images, network

import refquant
from refquant import VerifyError
from refquant.ir.op import OPS
from refquant.ir.target import Target
from refquant.kernels import threads
from refquant.ledger.draw.weighted import KINDS, convolution, dynamic, linear


@pytest.fixture(params=[2, 3, 7])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Divide the smallest layers, too, among a number of threads."""
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    before = refquant.get_num_threads()
    refquant.set_num_threads(request.param)
    yield request.param
    refquant.set_num_threads(before)


def alone(call: Any) -> Any:
    """Call with one thread."""
    before = refquant.get_num_threads()
    refquant.set_num_threads(1)
    try:
        return call()
    finally:
        refquant.set_num_threads(before)


def test_layers_are_the_same_with_any_number_of_threads(many: int) -> None:
    rng = np.random.default_rng(many)
    calls = [("quantized::linear", linear(rng, i % 2 > 0, True, i % 3 > 0)) for i in range(20)]
    calls += [
        ("quantized::linear_dynamic", dynamic(rng, i % 2 > 0, True, False)) for i in range(4)
    ]
    calls += [
        ("quantized::conv2d", convolution(rng, kind, 2, i % 2 > 0, True, i % 3 > 0))
        for kind in KINDS
        for i in range(8)
    ]
    for name, (operands, attributes) in calls:
        function = OPS[name].bind(Target(), fast=True)
        results = [
            np.asarray(getattr(y, "int_repr", y))
            for y in (
                function(*operands, **attributes),
                alone(lambda: function(*operands, **attributes)),  # noqa: B023
            )
        ]
        np.testing.assert_array_equal(*results)


def test_networks_are_the_same_with_any_number_of_threads(many: int) -> None:
    for seed in range(12):
        graph = network(100 * many + seed)
        x = images(graph, 3)
        assert_same(graph(x), alone(lambda: graph(x)))  # noqa: B023


def test_an_error_in_any_part_is_raised_after_all_have_ended() -> None:
    ended = []

    def work(number: int) -> None:
        if number == 2:
            raise ValueError("two")
        ended.append(number)

    with pytest.raises(ValueError, match="two"):
        threads.run(work, [(0,), (1,), (2,), (3,)])
    assert sorted(ended) == [0, 1, 3]


def test_parts_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=20)
    threads.run(lambda _number: barrier.wait(), [(0,), (1,), (2,)])
    assert not barrier.broken


def test_small_layers_stay_in_the_calling_thread() -> None:
    assert threads.parts(threads.LEAST_WORK) == 1
    before = refquant.get_num_threads()
    refquant.set_num_threads(4)
    assert [threads.parts(n * threads.LEAST_WORK) for n in (2, 9)] == [2, 4]
    refquant.set_num_threads(before)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True])
def test_a_wrong_number_is_refused(count: Any) -> None:
    with pytest.raises(VerifyError, match="expected an integer >= 1"):
        refquant.set_num_threads(count)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_workers_of_its_own() -> None:
    threads.run(lambda _number: None, [(0,), (1,)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any thread
        child = os.fork()
    if child == 0:
        barrier = threading.Barrier(2, timeout=20)
        try:
            threads.run(lambda _number: barrier.wait(), [(0,), (1,)])
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

"""Each graph of the suite folds as far as a rule allows, and computes the same."""

from __future__ import annotations

import pytest

from tests.onnx_graph.graphs import GRAPHS, Small
from tests.onnx_graph.support import check, left


@pytest.mark.parametrize("small", GRAPHS, ids=lambda small: small.name)
def test_a_graph_of_the_suite(small: Small) -> None:
    for seed in (0, 1):
        model = small.model(seed)
        runtime = small.left == 0
        folding = check(model, *small.shapes, runtime=runtime)
        assert left(folding.model) == small.left, [decision.detail for decision in folding.plan]
        kinds = [decision for decision in folding.plan if decision.action == "affine"]
        assert len(kinds) == small.affines, [decision.detail for decision in folding.plan]


def test_the_suite_is_large_enough() -> None:
    assert len(GRAPHS) >= 40

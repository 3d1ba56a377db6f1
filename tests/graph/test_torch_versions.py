"""What stands in for other versions of torch; what needs one of them to be seen runs in ``make matrix``."""

from __future__ import annotations

import collections
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from bnfold.graph import torch_versions
from bnfold.graph.shells import shell
from bnfold.graph.torch_versions import children_of, find_named_tuples, name_ends, program_of, unguarded_module


def test_the_parts_of_a_nest_are_told_as_either_version_holds_them() -> None:
    assert children_of(SimpleNamespace(children_specs=[1, 2])) == [1, 2]
    assert children_of(SimpleNamespace(children=lambda: [3])) == [3]


@pytest.mark.parametrize("known", [True, False], ids=["guards", "no guards"])
def test_a_module_without_guards_is_asked_for_where_there_are_any(known: bool) -> None:
    class Guarded:
        def module(self, check_guards: bool = True) -> Any:
            return "guarded" if check_guards else "plain"

    class Old:
        def module(self) -> Any:
            return "plain"

    assert unguarded_module(Guarded() if known else Old()) == "plain"  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "kept"), [((2, 12), 2), ((2, 13), 3)])
def test_how_wide_an_index_is_decides_nothing(monkeypatch: pytest.MonkeyPatch, version: Any, kept: int) -> None:
    guards = ["s0 <= 2147483646", "Ne(s0, 1)", "3*s0*s1 <= 2147483647"]
    monkeypatch.setattr(torch_versions, "_TORCH", version)
    assert torch_versions.without_index_widths(iter(guards)) == guards[:kept]


def test_a_program_is_made_by_running_python() -> None:
    class Prints(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(type(x).__name__)  # what the other way, by bytecode, would not do
            return x + 1

    seen: list[str] = []
    program_of(Prints(), (torch.ones(2),))
    assert seen == ["FakeTensor"]


def test_generated_code_finds_a_named_tuple_wherever_it_stands_in_the_output() -> None:
    pair = collections.namedtuple("FarAway", "one two")
    code: dict[str, Any] = {}
    exec("def forward(x): return [{'a': FarAway(one=x, two=1)}]", code)
    with pytest.raises(NameError):
        code["forward"](0)
    find_named_tuples(code["forward"], [{"a": pair(None, None)}])
    assert code["forward"](0) == [{"a": pair(0, 1)}]


def test_what_enters_and_leaves_a_file_has_its_names_and_no_two_the_same() -> None:
    x, y = ir.Value(name="x_orig", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2])), None
    node = ir.node("Relu", [x])
    y = node.outputs[0]
    y.name = "second"
    graph = ir.Graph([x], [y, y], nodes=[node], opset_imports={"": 18})
    name_ends(graph, ["x"], ["first", "second"])
    assert [value.name for value in graph.inputs] == ["x"]
    assert [value.name for value in graph.outputs] == ["first", "second"]
    assert [(n.op_type, n.inputs[0].name, n.outputs[0].name) for n in graph] == [  # type: ignore[union-attr]
        ("Relu", "x", "first"),
        ("Identity", "first", "second"),
    ]


def test_the_shell_of_a_graph_module_runs_its_code_and_leaves_the_others_alone() -> None:
    traced = symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    copy = shell(traced, {})
    x = torch.tensor([[1.0, -2.0]])
    assert torch.equal(copy(x), traced(x))
    assert type(copy) is not type(traced)

"""Capture by ``torch.export``, for models whose run cannot be recorded.

Export runs the model on fake tensors of the example inputs' shapes. Python control flow is decided by these shapes, so
the graph is right for them only: every dimension but the batch is fixed, and a guard at the head of the graph says so
to who calls it otherwise. The batch is left open only where export finds the graph right for all batches of two and
more; that it is right for a batch of one, too, is tried.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from bnfold.capture.lines import DEPTH, place_of
from bnfold.capture.restore import buffers_of, left_as_found, own_copies, put_back, same_random_numbers, seed
from bnfold.graph.captured import DTYPE
from bnfold.graph.proof import behaves_like_batch_norm, measured_batch_norm
from bnfold.graph.quiet import quiet
from bnfold.graph.requires import SIMPLE, require_batch, require_shape, require_value
from bnfold.graph.shells import shell
from bnfold.graph.torch_versions import program_of, unguarded_module

__all__ = ["export_graph"]

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


Shapes: TypeAlias = "tuple[dict[Node, tuple[int, ...]], ...]"


def export_graph(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Graph, nn.Module, tuple[str, ...], Shapes]:
    """Return the graph of aten operators, the module that holds its parameters (the model's own), notes and shapes.

    Raises:
        Exception: whatever ``torch.export`` raises, with the batch dynamic and without.
    """
    model = _with_plain_batch_norms(model)
    inputs = own_copies(inputs)  # export takes one tensor that is given twice for one input
    batch = next((value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim), None)
    grown = tuple(map(_two_or_more, inputs)) if batch == 1 else inputs
    batch = 2 if batch == 1 else batch
    # not Dim.AUTO, which would narrow the batch in silence where the code looks at it
    dim = torch.export.Dim("batch")
    dynamic = tuple({0: dim} if isinstance(v, Tensor) and v.ndim and v.shape[0] == batch else None for v in grown)
    notes: tuple[str, ...] = ()
    least = 1
    with quiet(), torch.no_grad():
        try:
            program = program_of(model, grown, (dynamic,) if _variadic(model) else dynamic)
            module = unguarded_module(program)
            if any(dynamic) and not _right_for_one(model, module, inputs, dynamic):
                least = 2
                if grown is not inputs:
                    raise ValueError("a batch of one is what was asked for")
        except Exception:
            module = unguarded_module(program_of(model, inputs))
    graph = module.graph
    _inline_regions(graph, module)
    fixed = _add_guards(graph, least)
    if fixed:
        notes = (f"captured by torch.export: the folded model takes inputs of {fixed}",)
    shapes = tuple({node: _sizes(node.meta["val"], batch) for node in _tensors(graph)} for batch in (5, 7))
    types = {node: node.meta["val"].dtype for node in _tensors(graph)}
    _tidy(graph)
    for node in graph.nodes:
        if node in types:
            node.meta[DTYPE] = types[node]
    return graph, module, notes, shapes


class _PlainBatchNorm(nn.Module):
    """An eval-mode BatchNorm over the tensors of a layer that was measured to be one."""

    def __init__(self, layer: nn.Module, eps: float) -> None:
        super().__init__()
        self._parameters, self._buffers, self.eps = layer._parameters, layer._buffers, eps
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        tensors: Any = {"weight": None, "bias": None, **self._parameters, **self._buffers}
        mean, variance = tensors["running_mean"], tensors["running_var"]
        return torch.batch_norm(x, tensors["weight"], tensors["bias"], mean, variance, False, 0.0, self.eps, False)


def _with_plain_batch_norms(model: nn.Module) -> nn.Module:
    """Return a shell of the model whose frozen BatchNorms are recorded as such, not as the arithmetic they do."""
    frozen = {name: part for name, part in model.named_modules() if name and _is_frozen(part)}
    if not frozen:
        return model
    whole: nn.Module = shell(model, {})
    for name, layer in frozen.items():
        owner, _, attribute = name.rpartition(".")
        part, measured = whole.get_submodule(name), measured_batch_norm(layer)
        assert measured is not None
        whole.get_submodule(owner)._modules[attribute] = _PlainBatchNorm(part, measured.eps)
    return whole


def _is_frozen(module: nn.Module) -> bool:
    return not isinstance(module, nn.modules.batchnorm._NormBase) and behaves_like_batch_norm(module)


def _inline_regions(graph: Graph, module: nn.Module) -> None:
    """Put the graphs of ``with no_grad()`` and ``with autocast(enabled=False)`` regions in place of their calls.

    A region with autocast enabled computes in another precision, and is left as it is.
    """
    higher = torch.ops.higher_order
    operands = {higher.wrap_with_set_grad_enabled: 2, higher.wrap_with_autocast: 5}
    for node in list(graph.nodes):
        start = operands.get(node.target)
        if start is None or (node.target is higher.wrap_with_autocast and node.args[2]):
            continue
        inner = getattr(module, str(node.args[start - 1].target)).graph
        _inline_regions(inner, getattr(module, str(node.args[start - 1].target)))
        values: dict[Node, Any] = {}
        placeholders = [n for n in inner.nodes if n.op == "placeholder"]
        values.update(zip(placeholders, node.args[start:], strict=True))
        with graph.inserting_before(node):
            results = graph.graph_copy(inner, values)
        results = results if isinstance(results, (tuple, list)) else (results,)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def _two_or_more(value: Any) -> Any:
    """A batch of one would be taken for a constant: repeat it."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _variadic(model: nn.Module) -> bool:
    code = getattr(model.forward, "__code__", None)
    return bool(code is not None and code.co_flags & 0x04)


def _right_for_one(model: nn.Module, module: nn.Module, inputs: tuple[Any, ...], dynamic: tuple[Any, ...]) -> bool:
    """Whether the graph answers a batch of one as the model does; ``torch.export`` takes for granted that none comes.

    Code that asks for it, a ``squeeze()`` say, is recorded as for larger batches.
    """
    single = tuple(value if dim is None else value[:1] for value, dim in zip(inputs, dynamic, strict=True))
    with same_random_numbers():
        seed(0)
        drawn = tuple(
            torch.randn_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in single
        )
    return all(_agree(model, module, tried) for tried in (single, drawn))


def _agree(model: nn.Module, module: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a model and its graph, which holds the same tensors, answer alike; nothing is changed by their runs."""
    answers: list[list[Any]] = []
    state = buffers_of(model.modules())
    for run in (model, module):
        with left_as_found(model.modules()), same_random_numbers():
            seed(0)
            try:
                answers.append(pytree.tree_leaves(run(*own_copies(inputs))))
            except Exception:  # it takes no such batch
                return False
            finally:
                put_back(state)
    return [*map(_kind, answers[0])] == [*map(_kind, answers[1])] and all(map(_alike, *answers))


def _kind(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    if not one.is_floating_point() or one.numel() == 0:
        return torch.equal(one, other)
    peak = float(one.abs().max().nan_to_num(0.0, 0.0))
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * peak, equal_nan=True)


def _add_guards(graph: Graph, least: int) -> str:
    """Check, at the head of the graph, the sizes that the export took for granted; return them in words.

    Args:
        graph: of an export; guards are added.
        least: the smallest batch that it is right for, where the batch is open.
    """
    words = []
    first: Node | None = None
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if not placeholders:
        return ""
    for node in placeholders:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            if "val" in node.meta and isinstance(value, SIMPLE):
                with graph.inserting_after(placeholders[-1]):
                    graph.call_function(require_value, (node, value, node.name))
            continue
        shape = tuple(map(_fixed, value.shape))
        with graph.inserting_after(placeholders[-1]):
            if shape and shape[0] is None:
                graph.call_function(require_batch, (node, least, node.name, first))
            graph.call_function(require_shape, (node, shape, node.name, value.dtype))
        first = node if first is None and shape and shape[0] is None else first
        words.append("(" + ", ".join("N" if size is None else str(size) for size in shape) + ")")
    return " and ".join(words) + (f" with N of at least {least}" if first is not None and least > 1 else "")


def _fixed(size: Any) -> int | None:
    """Return a size that is the same for all inputs, be it as a symbol that stands for one number; None for others."""
    known: int | None = size if isinstance(size, int) else size.node.maybe_as_int()
    return known


def _tensors(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]


def _sizes(value: Tensor, batch: int) -> tuple[int, ...]:
    """Return a shape as numbers, for a batch size that no channel count is likely to be."""
    sizes: list[int] = []
    for size in (*value.shape,):
        if isinstance(size, int):
            sizes.append(size)
        else:
            expression = size.node.expr
            sizes.append(int(expression.subs(dict.fromkeys(expression.free_symbols, batch))))
    return tuple(sizes)


def _tidy(graph: Graph) -> None:
    """Note the source line and the module of each node, and drop what torch notes of its own."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # asserts the dtype of the export, and would forbid .half() and .double()
            continue
        trace, stack = node.meta.get("stack_trace"), node.meta.get("nn_module_stack")
        frames = [f"{place_of(name)}:{line}" for name, line in _FRAME.findall(trace or "") if "/torch/" not in name]
        owner = next(reversed(stack.values()))[0] if stack else ""
        node.meta.clear()
        node.meta["source"] = frames[-1] if frames else None
        node.meta["lines"] = tuple(frames[: -DEPTH - 1 : -1])
        node.meta["module"] = owner

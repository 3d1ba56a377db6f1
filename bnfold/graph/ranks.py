"""What a graph's own nodes tell of the number of dimensions of a value: assertions, and views."""

from __future__ import annotations

from torch.fx import Node

from bnfold.graph.requires import require_rank

__all__ = ["asserted_rank", "rank_after_reshape"]


def asserted_rank(user: Node) -> int | None:
    """Read ``assert x.ndim == 4`` and bnfold's own guard off a reader of ``x``."""
    if user.target is require_rank:
        return int(user.args[1])  # type: ignore[arg-type]
    reads_rank = (user.target is getattr and user.args[1:] == ("ndim",)) or (
        user.op == "call_method" and user.target in ("dim", "ndimension")
    )
    if not reads_rank:
        return None
    for compared in user.users:
        if getattr(compared.target, "__name__", "") != "eq" or not isinstance(compared.args[1], int):
            continue
        if any(getattr(check.target, "__name__", "") == "_assert" for check in compared.users):
            return compared.args[1]
    return None


def rank_after_reshape(node: Node) -> int | None:
    """The rank that a view or flatten always gives, or None."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    arguments = [*node.args[1:], *node.kwargs.values()]
    if name == "flatten":
        start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        end = node.kwargs.get("end_dim", node.args[2] if len(node.args) > 2 else -1)
        return start + 1 if isinstance(start, int) and start >= 0 and end == -1 else None
    if name in ("view", "reshape") and arguments:
        sizes = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)) else arguments
        if len(arguments) == 1 and isinstance(arguments[0], Node):  # a size computed as a whole
            return None
        return len(sizes)
    return None

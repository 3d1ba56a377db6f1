"""What a recorded run must follow itself, or stop at, since a mode does not see it: TorchScript, autocast, vmap."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.eager_transforms
import torch._functorch.vmap

from bnfold.capture.lines import user_line
from bnfold.errors import CaptureError
from bnfold.graph.leaves import is_foreign
from bnfold.graph.requires import require_answer

if TYPE_CHECKING:
    from bnfold.capture.recorder import Recorder

__all__ = ["followed"]


@contextlib.contextmanager
def followed(recorder: Recorder) -> Iterator[None]:
    """While entered, follow compiled functions in Python, and stop at regions that no graph records."""
    enter = torch.autocast.__enter__

    def stop(what: str) -> CaptureError:
        line = user_line()
        return recorder.failed(
            CaptureError(
                f"forward enters {what}{f', at {line}' if line else ''}, which a graph would lose.",
                fix="Fold the model without it, or fold its parts one by one.",
            )
        )

    def autocast(self: torch.autocast) -> Any:
        if self._enabled and recorder.runs_here():
            raise stop("torch.autocast")
        return enter(self)  # type: ignore[no-untyped-call]

    def transform(original: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any, **kwargs: Any) -> Any:
            if recorder.runs_here():
                raise stop("torch.vmap or torch.func")
            return original(*args, **kwargs)

        return entered

    grad_enabled = torch.is_grad_enabled

    def asks_for_grad() -> bool:
        if recorder.runs_here() and recorder.inside == 0 and not is_foreign(sys._getframe(1).f_code.co_filename):
            node = recorder.require(grad_enabled, ())
            recorder.require(require_answer, (node, grad_enabled(), "torch.is_grad_enabled()"))
        return grad_enabled()

    scripted = torch.jit.ScriptFunction.__call__

    def script(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the Python that a compiled function was made of, as far as there is any: C++ would not be seen."""
        if not recorder.runs_here():
            return scripted(self, *args, **kwargs)
        source = getattr(self, "_torchdynamo_inline", None)
        if not isinstance(source, FunctionType) or not self.qualified_name.endswith(f".{source.__name__}"):
            raise stop("a function of torch.jit.trace")
        return source(*args, **kwargs)

    places = [(torch._functorch.vmap, "_vmap_increment_nesting")]
    places += [(torch._functorch.eager_transforms, f"_{kind}_increment_nesting") for kind in ("grad", "jvp")]
    saved = [(home, name, getattr(home, name)) for home, name in places if hasattr(home, name)]
    torch.is_grad_enabled = asks_for_grad
    torch.autocast.__enter__ = autocast  # type: ignore[method-assign]
    kind: Any = torch.jit.ScriptFunction
    kind.__call__ = script
    for home, name, original in saved:
        setattr(home, name, transform(original))
    try:
        yield
    finally:
        torch.is_grad_enabled = grad_enabled
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        kind.__call__ = scripted
        for home, name, original in saved:
            setattr(home, name, original)

"""The class of a folded model: a ``GraphModule`` that is called as any other module is."""

from __future__ import annotations

from torch.fx import GraphModule
from torch.fx.graph import PythonCode

__all__ = ["FoldedModule"]


class FoldedModule(GraphModule):
    """A ``GraphModule`` without the wrapper around ``__call__``.

    The wrapper prints a line of the generated code when an exception passes, and costs about a microsecond a call: more
    than one per cent of a small network's time.
    """

    def recompile(self) -> PythonCode:
        """Generate ``forward`` anew, and let ``nn.Module`` call it."""
        code = super().recompile()
        own = type(self)  # torch.fx makes a class for each instance, and puts the wrapper there
        if "__call__" in vars(own):
            del own.__call__
        return code

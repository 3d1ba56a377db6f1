"""The explicit affine layer: what a BatchNorm becomes where nothing absorbs it.

It has one form per target, chosen by measurement (``python -m benchmarks.affine_forms``):

=====================  ==========================================  ====================================================
target                 form                                        why
=====================  ==========================================  ====================================================
torch eager, compile,  ``torch.batch_norm`` with mean 0, var 1,    the same kernel as the BatchNorm it replaces, so the
torch.export           eps 0                                       same bits and speed; ``addcmul`` is slower on
                                                                   contiguous inputs, ``x * a + b`` rounds twice
ONNX, spatial input    depthwise 1x1 ``Conv``                      stays in ONNX Runtime's blocked layout and takes the
                                                                   next Relu in; Mul+Add forces a reorder (DenseNet-121
                                                                   gets 14 % slower)
ONNX, input (N, C)     ``Mul`` and ``Add``                         a matrix has no layout to lose
=====================  ==========================================  ====================================================

The choice is made in ``forward``, so that it serves also who exports a folded module on their own.
"""

import torch  # and no annotations as text: torch.jit.script reads those of the class as they are
import torch.nn.functional as F
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from bnfold.graph.reading import register_explicit_affine

__all__ = ["ExplicitAffine"]

_DEPTHWISE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class ExplicitAffine(nn.Module):
    """``y[:, c] = weight[c] * x[:, c] + bias[c]``, in one rounding on CPU, for x of shape ``(N, C, *)``.

    Args:
        weight: shape ``(C,)``.
        bias: shape ``(C,)``, dtype of weight.
        requires_grad: of both.
        dim: the dimension of x that the channels run along, where it is another.

    Built from :func:`bnfold.affine.exact_terms` it equals the BatchNorm bit for bit (float32 and float64, and float16
    and bfloat16 inputs; CPU).
    """

    zero: Tensor
    one: Tensor
    finite: bool = True
    dim: int = 1

    def __init__(self, weight: Tensor, bias: Tensor, *, requires_grad: bool = False, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(weight, requires_grad=requires_grad)
        self.bias = nn.Parameter(bias, requires_grad=requires_grad)
        self.register_buffer("zero", torch.zeros_like(weight), persistent=False)
        self.register_buffer("one", torch.ones_like(weight), persistent=False)
        self.finite = weight.is_meta or bool(torch.isfinite(weight).all() & torch.isfinite(bias).all())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the affine, in the form that suits the target."""
        if not is_scripting():  # noqa: SIM102  torch.jit.script leaves out what is under this very condition
            if torch.onnx.is_in_onnx_export():
                return self._for_onnx(x)
        if not self.finite or self.dim != 1:
            return self._as_arithmetic(x)
        return torch.batch_norm(x, self.weight, self.bias, self.zero, self.one, False, 0.0, 0.0, False)

    def _as_arithmetic(self, x: Tensor) -> Tensor:
        """The form above knows of dimension 1 alone, and would multiply infinity by its mean of 0."""
        shape = [-1] + [1] * (x.ndim - 1 - self.dim)  # TorchScript unpacks nothing
        return torch.addcmul(self.bias.view(shape), x.to(self.weight.dtype), self.weight.view(shape)).to(x.dtype)

    @torch.jit.unused
    def _for_onnx(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        depthwise = _DEPTHWISE.get(x.ndim) if self.dim == 1 else None
        if depthwise is None:
            shape = [-1] + [1] * (x.ndim - 1 - self.dim)
            return x * weight.reshape(shape) + bias.reshape(shape)
        channels = weight.numel()
        return depthwise(x, weight.reshape(channels, 1, *[1] * (x.ndim - 2)), bias, groups=channels)

    def extra_repr(self) -> str:
        """Say how many channels."""
        return str(self.weight.numel())


register_explicit_affine(ExplicitAffine)

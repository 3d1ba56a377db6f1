"""Whether a module is in eval mode, where it matters."""

from __future__ import annotations

from torch import nn

from bnfold.errors import TrainingModeError

__all__ = ["require_eval", "training_parts"]

# Of torch's own layers these compute something else in training mode; the others may be in either mode.
SENSITIVE = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)


def training_parts(module: nn.Module) -> list[str]:
    """Return the names of the parts of ``module`` that are in training mode and may mind it.

    A layer of torch that computes the same in both modes, such as an ``nn.Identity`` put in the place of a BatchNorm,
    is not among them.
    """
    return [
        name or type(part).__name__
        for name, part in module.named_modules()
        if part.training and (isinstance(part, SENSITIVE) or not type(part).__module__.startswith("torch.nn."))
    ]


def require_eval(role: str, module: nn.Module) -> None:
    """Raise unless every part of ``module`` is in eval mode, as far as it matters.

    Args:
        role: how the message calls the module: "The original model".
        module: any module.

    Raises:
        TrainingModeError: with up to five of the names.
    """
    names = training_parts(module)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise TrainingModeError(
            f"{role} is in training mode ({', '.join(names[:5])}{more}).", fix="Call .eval() on it first."
        )

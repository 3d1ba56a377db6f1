"""Imported once by the server that local models' processes are forked from, so that no model waits for it.

Nothing here starts a thread, which a fork would lose: ONNX Runtime's telemetry would.
"""

import contextlib
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

with contextlib.suppress(ImportError):
    import bnfold.cli.fold
    import bnfold.export
    import bnfold.files.formats
    import bnfold.files.load
    import bnfold.files.state_dict
    import bnfold.fold.api
    import bnfold.inputs.search
    import bnfold.report.gather
    import bnfold.report.html
    import bnfold.verify  # noqa: F401
with contextlib.suppress(ImportError):  # what a fold with both outputs would import, most of its first seconds
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import torch._dynamo
    import torch._export.db.logging
    import torch._export.passes.collect_tracepoints_pass
    import torch._functorch.aot_autograd
    import torch._inductor.ir
    import torch.export._trace
    import torch.export._unlift
    import torch.onnx._internal.exporter._torchlib.ops  # noqa: F401

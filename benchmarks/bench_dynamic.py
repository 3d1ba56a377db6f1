"""Export models with a free batch and a free size, and run the files at another size: how far off are they?

    python benchmarks/bench_dynamic.py                  # the twelve networks, folded at 128x128 and run at 192x160
    python benchmarks/bench_dynamic.py --zoo            # and the models of the zoo that zoo_export.jsonl names
    python benchmarks/bench_dynamic.py --cost           # what a free batch costs ONNX Runtime, at batch 1
    python benchmarks/bench_dynamic.py --summary        # the table, as Markdown, of what was recorded

The error of the file under ONNX Runtime, and of the folded module in torch, is told in units of the original's own
float32 error against float64, on the same input, in batches of 3. As in the proof, that error is measured again where
one stands above the limit: with weights moved by an ulp, as rounding moves those of a fold. Records go to
``results/dynamic.jsonl``; models that have one already are passed over. Needs what ``zoo.py`` needs, with
segmentation_models_pytorch and ultralytics.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import bnfold  # noqa: E402
from benchmarks import shim  # noqa: E402
from benchmarks.zoo_build import build, fresh_inputs  # noqa: E402
from benchmarks.zoo_list import read_list  # noqa: E402
from bnfold.export import Wanted, onnx_of  # noqa: E402
from bnfold.verify.floor import DRAWS  # noqa: E402
from bnfold.verify.original import TorchOriginal  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "dynamic.jsonl"
LIMIT = 10.0  # floors: what the proof allows an export of a proven fold

Inputs = tuple[Any, ...]
Subject = tuple[nn.Module, int, Callable[[int, int, int], Inputs]]
"""A model, the size to fold it at, and what draws its inputs, of a batch, a height and a width."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", action="store_true", help="the zoo, too")
    parser.add_argument(
        "--cost", action="store_true", help="time files with a free batch beside files with a fixed one"
    )
    parser.add_argument("--summary", action="store_true", help="print the table and do nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = {record["model"]: record for record in _read(options.output)}
    if options.summary:
        print(_summary(list(known.values())))
        return 0
    if options.cost:
        _cost()
        return 0
    for library in ("torchvision", "timm"):
        shim.load(library)
    for group, name, make in (*_twelve(), *(_zoo() if options.zoo else ())):
        if name in known:
            continue
        record = {"model": name, "group": group, **_measured(make)}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(record["model"], record["outcome"], record.get("why", ""), flush=True)
    return 0


def _twelve() -> Iterator[tuple[str, str, Callable[[], Subject]]]:
    entries = {entry.model: entry for entry in read_list() if entry.library in ("timm", "torchvision")}

    def plain() -> Subject:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 16), (16, 8)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return _randomised(nn.Sequential(*layers)), 128, _image

    yield "twelve", "plain", plain
    names = "resnet18 lraspp_mobilenet_v3_large fcn_resnet50 tf_efficientnet_b0 mixnet_s efficientvit_b0 "
    for name in (names + "mobilevitv2_050 hrnet_w18_small").split():
        if name in entries:
            yield "twelve", name, lambda entry=entries[name]: (build(entry).model, 128, _image)  # type: ignore[misc]

    def segmentation(kind: str) -> Subject:
        import segmentation_models_pytorch as smp  # type: ignore[import-untyped,unused-ignore]

        torch.manual_seed(0)
        return _randomised(getattr(smp, kind)("resnet18", encoder_weights=None, classes=4)), 128, _image

    yield "twelve", "DeepLabV3Plus", lambda: segmentation("DeepLabV3Plus")
    yield "twelve", "FPN", lambda: segmentation("FPN")

    def yolo() -> Subject:
        from ultralytics.nn.tasks import DetectionModel  # type: ignore[import-untyped,unused-ignore]

        torch.manual_seed(0)
        return _randomised(DetectionModel("yolov8n.yaml", verbose=False)), 128, _image

    yield "twelve", "yolov8n", yolo


def _zoo() -> Iterator[tuple[str, str, Callable[[], Subject]]]:
    exported = {(record["library"], record["model"]) for record in _read(RESULTS.with_name("zoo_export.jsonl"))}
    for entry in (entry for entry in read_list() if (entry.library, entry.model) in exported):

        def make(entry: Any = entry) -> Subject:
            subject = build(entry)

            def draw(batch: int, height: int, width: int) -> Inputs:
                return fresh_inputs(entry, (*subject.shape[:-2], height, width), batch=batch, seed=0)

            return subject.model, max(subject.shape[-1], 128), draw

        yield "zoo", entry.key, make


def _randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_var is not None:
            assert layer.running_mean is not None
            shape = layer.running_mean.shape
            layer.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
            layer.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            signs = torch.where(torch.rand(shape, generator=generator) < 0.2, -1.0, 1.0)
            layer.weight.data.copy_((torch.rand(shape, generator=generator) * 0.5 + 0.75) * signs)
            layer.bias.data.copy_(torch.randn(shape, generator=generator) * 0.1)
    return model.eval()


def _measured(make: Callable[[], Subject]) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    start = time.process_time()
    try:
        model, size, draw = make()
        example = draw(2, size, size)
        with torch.no_grad():
            model(*example)
        folded = bnfold.fold(model, example, check=False).module
        exported = onnx_of(folded, example, dynamic=Wanted(batch=True, size=True))
    except Exception as error:
        return {"outcome": "failed", "why": _line(error)}
    record: dict[str, Any] = {
        "size": size,
        "axes": {axis.name: [axis.step, axis.least, axis.most] for axis in exported.axes},
        "notes": list(exported.notes),
        "seconds": round(time.process_time() - start, 1),
    }
    steps = {axis.name: axis.step for axis in exported.axes}
    if "height" not in steps:
        try:
            with torch.no_grad():
                model(*draw(3, 3 * size // 2, 5 * size // 4))
        except Exception as error:
            return {**record, "outcome": "the model refuses", "why": _line(error)}
        return {**record, "outcome": "size fixed", "why": exported.notes[-1] if exported.notes else "no reason told"}
    other = draw(3 if "batch" in steps else 2, *_sizes(size, steps))
    record["other"] = list(other[0].shape)
    return {**record, **_compared(model, folded, exported.model, other)}


def _cost() -> None:
    """Print the time of a file with a free batch as a share of that of the same file with the batch fixed at 1."""
    for name, width, blocks, size in (("tiny", 8, 1, 28), ("small", 32, 6, 32), ("large", 64, 12, 112)):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(blocks):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        model = _randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)))
        example = _image(1, size, size)
        folded = bnfold.fold(model, example, check=False).module
        sessions = []
        for free in (True, False):
            made = onnx_of(folded, example, dynamic=Wanted(batch=free)).model
            session = _session(made, threads=1)
            sessions.append((session, _feed(session, example)))
        once = time.process_time()
        sessions[0][0].run(None, sessions[0][1])
        runs = max(3, int(0.05 / max(time.process_time() - once, 1e-6)))
        ratios = []
        for _ in range(41):
            seconds = []
            for session, feed in sessions:
                begin = time.process_time()
                for _ in range(runs):
                    session.run(None, feed)
                seconds.append((time.process_time() - begin) / runs)
            ratios.append(seconds[0] / seconds[1])
        ratios.sort()
        print(
            f"{name}: {1e6 * seconds[1]:.0f} microseconds fixed; free / fixed {median(ratios):.3f} "
            f"({ratios[4]:.3f} to {ratios[-5]:.3f} in 8 of 10 rounds)",
            flush=True,
        )


def _sizes(size: int, steps: dict[str, int]) -> tuple[int, int]:
    """Return the height and the width to run at: 192x160 for 128, in the steps that the file takes."""
    height, width = (size + max(1, size * n // 4 // step) * step for n, step in ((2, steps["height"]), (1, _w(steps))))
    return height, width if "width" in steps else height


def _w(steps: dict[str, int]) -> int:
    return steps.get("width", 1)


def _compared(model: nn.Module, folded: nn.Module, onnx_model: Any, other: Inputs) -> dict[str, Any]:
    with torch.no_grad():
        try:
            own = _tensors(model(*other))
        except Exception as error:
            return {"outcome": "the model refuses", "why": _line(error)}
        oracle = [leaf.value for leaf in TorchOriginal(model).exact(other) if leaf.is_tensor]
        mine = _tensors(folded(*other))
    try:
        theirs = _under_runtime(onnx_model, other)
    except Exception as error:
        return {"outcome": "the file refuses", "why": _line(error)}
    units = [max(_error(*both), float(both[0].abs().max()) * 2**-24) for both in zip(oracle, own, strict=True)]
    errors = {
        "torch": [_error(*both) for both in zip(oracle, mine, strict=True)],
        "onnx": [_error(*both) for both in zip(oracle, theirs, strict=True)],
    }

    def floors() -> dict[str, float]:
        return {
            name: round(max(error / unit for error, unit in zip(found, units, strict=True)), 2)
            for name, found in errors.items()
        }

    record: dict[str, Any] = {"floors": floors()}
    if max(record["floors"].values()) > LIMIT:
        original = TorchOriginal(model)
        for draw in range(DRAWS):
            answer = [leaf.value for leaf in original.moved(draw)(other) if leaf.is_tensor]
            units = [max(unit, _error(*both)) for unit, *both in zip(units, oracle, answer, strict=True)]
        record = {"first": record["floors"], "floors": floors()}
    if record["floors"]["torch"] <= LIMIT < record["floors"]["onnx"]:  # is it the file, or what is made of it?
        theirs = _under_runtime(onnx_model, other, optimise=False)
        errors["onnx"] = [_error(*both) for both in zip(oracle, theirs, strict=True)]
        record |= {"optimised": record["floors"]["onnx"], "floors": floors()}
    right = max(record["floors"].values()) <= LIMIT
    return {"outcome": "right" if right else "beyond the floor", **record}


def _under_runtime(onnx_model: Any, inputs: Inputs, *, optimise: bool = True) -> list[Tensor]:
    session = _session(onnx_model, optimise=optimise)
    return [torch.as_tensor(answer) for answer in session.run(None, _feed(session, inputs))]


def _session(onnx_model: Any, *, optimise: bool = True, threads: int = 0) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = onnx_model if isinstance(onnx_model, Path) else onnx_model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _feed(session: Any, inputs: Inputs) -> dict[str, Any]:
    return {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}


def _error(exact: Tensor, answer: Tensor) -> float:
    return float((answer.double() - exact).abs().max())


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def _image(batch: int, height: int, width: int) -> Inputs:
    return (torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)),)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or f"{type(error).__name__}, without a word"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _summary(records: list[dict[str, Any]]) -> str:
    lines = [
        "| model | outcome | sizes | torch, floors | file, floors | seconds |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for record in records:
        steps = [
            f"{name} {step[0]}k" for name, step in record.get("axes", {}).items() if name != "batch" and step[0] > 1
        ]
        floors = record.get("floors", {})
        told = record["outcome"] + (f": {record['why']}" if record.get("why") else "")
        if "optimised" in record:
            told += f", with ONNX Runtime's optimisations off; on, they are {record['optimised']} floors off"
        lines.append(
            f"| {record['model']} | {told} | {', '.join(steps) or 'any'} | {floors.get('torch', '')} | "
            f"{floors.get('onnx', '')} | {record.get('seconds', '')} |"
        )
    for group in dict.fromkeys(record["group"] for record in records):
        mine = [record for record in records if record["group"] == group]
        lines.append(f"\n{group}: {sum(record['outcome'] == 'right' for record in mine)} of {len(mine)} right.")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())

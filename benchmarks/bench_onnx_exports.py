"""Unfolded models of timm and torchvision, exported to ONNX as they are, folded there, and proven.

    python benchmarks/bench_onnx_exports.py              # what is not in the records yet; half an hour
    python benchmarks/bench_onnx_exports.py KEY ...      # these, again
    python benchmarks/bench_onnx_exports.py --table      # the records as a table, into results/onnx.md

For each model: what is left of its BatchNorms on the torch road and on that of ONNX, whether the proof of
``bnfold fold`` passes, and how far the folded file is from the torch model that was exported. Each runs in a process
of its own; a record is written when it ends. ``benchmarks/zoo.py`` says how to get the libraries.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

RECORDS = ROOT / "benchmarks" / "results" / "onnx_exports.jsonl"
LIMIT = 1800  # seconds for one model
TIMM = (
    "resnet18 mobilenetv2_100 densenet121 repvgg_a0 regnetx_002 mobileone_s0 dla46x_c efficientnet_b0 levit_128s "
    "test_efficientnet test_byobnet test_resnet starnet_s050 test_coatnet mobilevit_xxs mobilenetv3_small_050 "
    "ese_vovnet19b_slim_dw repghostnet_050 efficientvit_m0 ghostnet_050 cspnext_tiny iformer_t xcit_nano_12_p8_224 "
    "cs3darknet_focus_s efficientvit_b0 swiftformer_xs efficientformerv2_s0 fasternet_t0 fastvit_t8 lcnetv2_small "
    "inception_next_atto rexnet_100 hardcorenas_b repvit_m1 hgnetv2_b0 shvit_s1 visformer_tiny resnest14d skresnet18 "
    "tiny_vit_5m_224"
).split()
TORCHVISION = (
    "googlenet shufflenet_v2_x1_0 mnasnet0_5 mobilenet_v2 lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large"
).split()
KEYS = [*(f"timm/{name}" for name in TIMM), *(f"torchvision/{name}" for name in TORCHVISION)]


def measure(key: str) -> dict[str, Any]:
    """Return the record of one model."""
    import onnx
    import torch

    import bnfold
    from benchmarks.zoo_build import build, fresh_inputs
    from benchmarks.zoo_list import read_list
    from bnfold.export.onnx_model import to_onnx
    from bnfold.verify import verify
    from bnfold.verify.runtime import OrtModel

    entry = next(entry for entry in read_list() if entry.key == key)
    subject = build(entry)
    inputs = fresh_inputs(entry, subject.shape, batch=2, seed=11)
    clock, seconds = time.perf_counter(), {}

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name], clock = round(now - clock, 1), now

    plan = bnfold.plan(subject.model, inputs)
    lap("torch plan")
    exported = to_onnx(subject.model, inputs, optimize=False)
    lap("export")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(exported, path)
        folding = bnfold.fold_onnx(path)
        lap("fold")
        folded = Path(folder) / "folded.onnx"
        folding.save(folded)
        report = verify(path, folded, inputs, onnx=False, folding=folding)
        lap("proof")
        with torch.no_grad():
            expected = subject.model.double()(*(value.double() for value in inputs))
        flat = list(expected.values()) if isinstance(expected, dict) else expected
        flat = list(flat) if isinstance(flat, (list, tuple)) else [flat]
        answers = OrtModel(folded, "full")(*inputs)
        far = max(
            float((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-30))
            for one, other in zip(answers, flat, strict=True)
        )
    return {
        "model": key,
        "shape": list(inputs[0].shape),
        "nodes": [len(exported.graph.node), len(folding.model.graph)],
        "torch": _counted(plan, "batchnorm"),
        "onnx": _counted(folding.plan, "batchnorm"),
        "affines": _counted(folding.plan, "affine"),
        "left_why": sorted({str(d.reason) for d in folding.plan if d.kind == "batchnorm" and d.action != "fold"}),
        "verdict": report.verdict,
        "reason": report.reason,
        "comparisons": {
            each.name: [each.max_abs / each.peak if each.peak else each.max_abs, each.passed]
            for each in report.comparisons
        },
        "notes": list(report.notes),
        "from_torch": far,
        "seconds": seconds,
    }


def _counted(plan: Any, kind: str) -> dict[str, int]:
    found = [decision.action for decision in plan if decision.kind == kind]
    return {action: found.count(action) for action in ("fold", "affine", "keep")}


def records() -> dict[str, dict[str, Any]]:
    """Return the latest record of each model."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.is_file() else []
    return {record["model"]: record for record in map(json.loads, lines)}


def _put(key: str, end: Any) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        record = measure(key)
    except Exception as error:
        record = {"model": key, "error": f"{type(error).__name__}: {error}"[-600:]}
    end.send(record)


def run(keys: list[str]) -> None:
    """Measure models, each in its own process, which begins with all that is imported here."""
    from benchmarks import shim

    for library in ("torchvision", "timm"):
        shim.load(library)
    import_module("bnfold.verify.api")
    import_module("torch.onnx._internal.exporter._core")
    context = multiprocessing.get_context("fork")
    for number, key in enumerate(keys, 1):
        begin = time.perf_counter()
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_put, args=(key, there))
        process.start()
        there.close()
        try:
            record = here.recv() if here.poll(LIMIT) else {"model": key, "error": f"took longer than {LIMIT} s"}
        except EOFError:
            record = {"model": key, "error": "the process died"}
        process.kill()
        process.join()
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        told = record.get("error", f"{record.get('torch')} {record.get('onnx')} {record.get('verdict')}")
        print(f"{number}/{len(keys)} {key}: {told} ({time.perf_counter() - begin:.0f} s)", flush=True)


def write_table() -> None:
    """Write the records into the results, the latest of each model."""
    latest = records()
    whole = RECORDS.with_suffix(".writing")
    whole.write_text("".join(json.dumps(each) + "\n" for each in latest.values()), encoding="utf-8")
    whole.replace(RECORDS)
    from benchmarks.onnx_results import table, write_section

    rows, passed, more = [], 0, []
    every = [record for record in records().values() if "error" not in record]
    for record in sorted(every, key=lambda record: str(record["model"])):
        torch_left, left = (
            sum(number for action, number in record[road].items() if action != "fold") for road in ("torch", "onnx")
        )
        passed += record["verdict"] == "passed"
        if left > torch_left:
            more.append(record["model"])
        algebra = record["comparisons"].get("float64 algebra", [None])[0]
        algebras = [pair[0] for name, pair in record["comparisons"].items() if name.startswith("float64 algebra")]
        worst = max(algebras, default=algebra)
        rows.append(
            [
                record["model"],
                sum(record["torch"].values()),
                torch_left,
                left,
                record["verdict"],
                "none" if worst is None else f"{worst:.0e}",
                f"{record['from_torch']:.0e}",
                record["seconds"]["fold"],
                record["seconds"]["proof"],
            ]
        )
    failed = [record for record in records().values() if "error" in record]
    head = ["model", "BatchNorms", "left, torch", "left, ONNX", "proof", "algebra", "from torch", "fold, s", "proof, s"]
    text = (
        "`python benchmarks/bench_onnx_exports.py`: exported with `optimize=False`, batch free, BatchNorms with "
        f"calibrated statistics and scales of both signs. {len(rows)} models: the proof passes for {passed}; more is "
        f"left than on the torch road for {len(more)}{': ' if more else ''}{', '.join(more)}. *Algebra* is the largest "
        "error of the fold in float64 over the peak, *from torch* that of the folded file in float32 under ONNX "
        f"Runtime from the torch model in float64.\n\n{table(head, rows)}"
    )
    if failed:
        text += "\n\nNot measured: " + "; ".join(f"{each['model']} ({_last(each['error'])})" for each in failed) + "."
    write_section("Exports of unfolded models", text)


def _last(error: str) -> str:
    return error.splitlines()[-1][:160] if error else "no word"


def main() -> None:
    """Run what is asked for."""
    arguments = sys.argv[1:]
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: processes are forked
    if arguments == ["--table"]:
        write_table()
        return
    known = records()
    run(arguments or [key for key in KEYS if key not in known or "error" in known[key]])
    write_table()


if __name__ == "__main__":
    main()

"""What tools for ONNX files make of small graphs, and of real files: how many BatchNormalizations stay, who is wrong.

    python benchmarks/bench_onnx.py                     # the suite of the tests, beside other tools
    python benchmarks/bench_onnx.py FILE.onnx ...       # bnfold alone, on files: sites before and after, and the proof
                                                        # with --write into results/onnx.md

A tool is wrong on a graph where an output under ONNX Runtime, optimisations off, is further than rounding from what the
reference implementation answers in float64 for the original. The other tools are those that are installed:
``pip install --no-deps onnxslim onnxsim onnxoptimizer``; onnxscript comes with bnfold.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import bnfold  # noqa: E402
from bnfold.verify import verify  # noqa: E402
from bnfold.verify.onnx_double import in_double  # noqa: E402
from bnfold.verify.onnx_inputs import onnx_inputs  # noqa: E402

GRAPHS: Any = import_module("tests.onnx_graph.graphs").GRAPHS
support: Any = import_module("tests.onnx_graph.support")

FAR = 1e-4  # of the largest output


@dataclass
class Row:
    """What a tool made of all graphs: BatchNormalizations left in all, graphs on which it is wrong or failed."""

    left: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def by_bnfold(model: onnx.ModelProto) -> onnx.ModelProto:
    folded: onnx.ModelProto = bnfold.fold_onnx(model).model
    return folded


def by_onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "net.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def by_onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    slimmed: onnx.ModelProto = import_module("onnxslim").slim(model)
    return slimmed


def by_onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    simplified: onnx.ModelProto = import_module("onnxsim").simplify(model)[0]
    return simplified


def by_onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    optimizer = import_module("onnxoptimizer")
    optimized: onnx.ModelProto = optimizer.optimize(model, optimizer.get_fuse_and_elimination_passes())
    return optimized


def by_onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = onnx_ir.from_proto(model)
    import_module("onnxscript.optimizer").optimize_ir(graph)
    from onnxscript.rewriter import rewrite

    proto: onnx.ModelProto = onnx_ir.to_proto(rewrite(graph))
    return proto


TOOLS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "bnfold": by_bnfold,
    "onnxruntime": by_onnxruntime,
    "onnxslim": by_onnxslim,
    "onnxsim": by_onnxsim,
    "onnxoptimizer": by_onnxoptimizer,
    "onnxscript": by_onnxscript,
}


def compared() -> dict[str, Row]:
    """Let each tool that is installed fold each graph of the suite."""
    rows = {name: Row() for name in TOOLS if importlib.util.find_spec(name) is not None}
    for small in GRAPHS:
        model = small.model()
        expected = [
            (each, support.answers(in_double(model), support.drawn(each))) for each in small.shapes if not small.left
        ]
        for name, row in rows.items():
            given = onnx.ModelProto()
            given.CopyFrom(model)
            try:
                made = TOOLS[name](given)
                row.left += support.left(made)
                if small.left:  # it trains: what it answers is not its statistics' affine
                    if support.left(made) < small.left:
                        row.wrong.append(small.name)
                    continue
                for each, answers in expected:
                    inputs = [value.astype(np.float32) for value in support.drawn(each)]
                    found = support.session_answers(made, inputs, optimised=False)
                    if support.peak_error(found, answers) > FAR:
                        row.wrong.append(small.name)
                        break
            except Exception as error:
                row.failed.append(f"{small.name}: {str(error).splitlines()[0][:80]}")
    return rows


def of_file(path: Path) -> dict[str, Any]:
    """Fold a file; return its sites before and after."""
    begin = time.perf_counter()
    try:
        folding = bnfold.fold_onnx(path)
    except bnfold.BnfoldError as error:
        return {"file": path.name, "refused": str(error)}
    seconds = time.perf_counter() - begin
    kinds = {"batchnorm": {"fold": 0, "affine": 0, "keep": 0}, "affine": {"fold": 0, "affine": 0, "keep": 0}}
    for decision in folding.plan:
        kinds[decision.kind][decision.action] += 1
    before = onnx.load(path, load_external_data=False)
    begin = time.perf_counter()
    folded = onnx_ir.to_proto(folding.model)
    try:
        report = verify(path, folded, onnx_inputs(path), onnx=False, folding=folding)
        proof = {
            "verdict": report.verdict,
            "reason": report.reason,
            "algebra": max(
                (each.max_abs / each.peak for each in report.comparisons if "algebra" in each.name), default=None
            ),
            "notes": list(report.notes),
        }
    except bnfold.BnfoldError as error:
        proof = {"verdict": f"no proof: {error}"}
    return {
        "file": path.name,
        "opset": folding.model.opset_imports.get("", 0),
        "nodes": [len(before.graph.node), len(folding.model.graph)],
        "batchnorm_nodes": [support.left(before), support.left(onnx_ir.to_proto(folding.model))],
        **kinds,
        "seconds": round(seconds, 2),
        "proof": proof | {"seconds": round(time.perf_counter() - begin, 1)},
    }


def write_files(records: list[dict[str, Any]]) -> None:
    """Write what became of files into the results."""
    from benchmarks.onnx_results import table, write_section

    rows = []
    for record in records:
        if "refused" in record:
            rows.append([record["file"], record["refused"], *[""] * 5])
            continue
        nodes, bns = (f"{before} -> {after}" for before, after in (record["nodes"], record["batchnorm_nodes"]))
        affines, proof = record["affine"], record["proof"]
        algebra = proof.get("algebra")
        rows.append(
            [
                record["file"],
                nodes,
                bns,
                f"{affines['fold']} of {sum(affines.values())}",
                proof["verdict"],
                "none" if algebra is None else f"{algebra:.0e}",
                proof["seconds"],
            ]
        )
    head = ["file", "nodes", "BatchNormalizations", "affines folded", "proof", "algebra", "proof, s"]
    text = (
        "`python benchmarks/bench_onnx.py FILES --write`, on files that packages of the registry hold (rapidocr, "
        f"ddddocr, nudenet); *algebra* is the largest error in float64 over the peak.\n\n{table(head, rows)}"
    )
    write_section("Real files", text)


def main() -> None:
    """Print the table, or a line for each file."""
    files = [Path(name) for name in sys.argv[1:] if name != "--write"]
    if files:
        records = []
        for path in files:
            records.append(of_file(path))
            print(json.dumps(records[-1]), flush=True)
        if "--write" in sys.argv:
            write_files(records)
        return
    rows = compared()
    total = sum(support.left(small.model()) for small in GRAPHS)
    print(f"{len(GRAPHS)} graphs, {total} BatchNormalizations\n")
    print("| tool | left | graphs wrong | failed |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row.left} | {len(row.wrong)} {' '.join(row.wrong)} | {len(row.failed)} |")
    for name, row in rows.items():
        for failed in row.failed:
            print(f"\n{name} failed on {failed}", end="")
    print()


if __name__ == "__main__":
    main()

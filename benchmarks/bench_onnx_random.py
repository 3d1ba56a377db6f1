"""Random ONNX graphs, built directly and exported from random torch graphs: is a fold of one wrong in float64?

    python benchmarks/bench_onnx_random.py direct 0 1850        # seeds
    python benchmarks/bench_onnx_random.py exported 0 150
    python benchmarks/bench_onnx_random.py --table              # what was found, into results/onnx.md

The same plan in float64 against the original in float64, at several batches (and sizes, where they are free), by the
kernels of the proof; the folded file under ONNX Runtime without optimisations once. What was done is not done again:
the records lie in ``build/onnx_random.jsonl``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bnfold.onnx_graph.api import fold_onnx  # noqa: E402

random_net: Any = import_module("tests.fold.random_graphs").random_net
random_graph: Any = import_module("tests.onnx_graph.random_graphs").random_graph
support: Any = import_module("tests.onnx_graph.support")

RECORDS = ROOT / "build" / "onnx_random.jsonl"
Shapes = list[list[tuple[int, ...]]]


def exported(seed: int) -> tuple[onnx.ModelProto, Shapes]:
    """Return the export of a random torch graph, not optimised, its batch free where that can be."""
    net, x = random_net(seed, steps=12)
    net, x = net.float(), x.float()
    free: Any = ({0: torch.export.Dim("batch")},)
    for dynamic in (free, None):
        try:
            made = torch.onnx.export(net, (x,), dynamo=True, optimize=False, dynamic_shapes=dynamic, verbose=False)
            break
        except Exception:
            if dynamic is None:
                raise
    shape = tuple(x.shape)
    assert made is not None
    return made.model_proto, [[shape], *([[(3, *shape[1:])]] if dynamic else [])]


def examine(kind: str, seed: int) -> dict[str, Any]:
    """Return the record of one graph."""
    record: dict[str, Any] = {"kind": kind, "seed": seed}
    try:
        model, shapes = random_graph(seed) if kind == "direct" else exported(seed)
    except Exception as error:
        return record | {"not_made": str(error).splitlines()[0][:200] if str(error) else type(error).__name__}
    folding = fold_onnx(model)
    original, exact = folding.in_float64()
    worst, far = 0.0, 0.0
    for each in shapes:
        inputs = support.drawn(each)
        try:
            expected = support.answers(original, inputs)
        except Exception as error:
            return record | {"no_oracle": str(error).splitlines()[0][:200]}
        worst = max(worst, support.peak_error(support.answers(exact, inputs), expected))
        if not far:
            narrow = [value.astype(np.float32) for value in inputs]
            own = support.peak_error(support.session_answers(model, narrow, optimised=False), expected)
            folded = support.peak_error(support.session_answers(folding.model, narrow, optimised=False), expected)
            far = folded / max(own, 1e-7)
            record["oracle_off"] = own
    actions = Counter(f"{decision.kind} {decision.action}" for decision in folding.plan)
    return record | {"error": worst, "floors_in_float32": far, "actions": dict(actions)}


def records() -> list[dict[str, Any]]:
    """Return what is known."""
    if not RECORDS.is_file():
        return []
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]


def run(kind: str, first: int, last: int) -> None:
    """Look at the seeds of a range that were not looked at."""
    RECORDS.parent.mkdir(exist_ok=True)
    known = {(record["kind"], record["seed"]) for record in records()}
    for seed in range(first, last):
        if (kind, seed) in known:
            continue
        try:
            record = examine(kind, seed)
        except Exception as error:
            record = {"kind": kind, "seed": seed, "raised": f"{type(error).__name__}: {error}"[:300]}
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if "raised" in record or record.get("error", 0) > 1e-9 or record.get("floors_in_float32", 0) > 30:
            print(record, flush=True)


def write_table() -> None:
    """Write what was found into the results."""
    from benchmarks.onnx_results import table, write_section

    rows = []
    total, wrong = 0, []
    for kind in ("direct", "exported"):
        found = [record for record in records() if record["kind"] == kind]
        seen = [record for record in found if "error" in record]
        off = [record["seed"] for record in seen if not record["error"] <= 1e-9]
        raised = [record["seed"] for record in found if "raised" in record]
        actions: Counter[str] = sum((Counter(record["actions"]) for record in seen), Counter())
        batchnorms = [actions[f"batchnorm {action}"] for action in ("fold", "affine", "keep")]
        total += len(seen)
        wrong += [f"{kind} {seed}" for seed in (*off, *raised)]
        rows.append(
            [
                {"direct": "built directly", "exported": "exported from random torch graphs"}[kind],
                len(seen),
                len(off),
                len(raised),
                f"{max((record['error'] for record in seen if record['error'] <= 1e-9), default=0):.0e}",
                f"{batchnorms[0]} / {batchnorms[1]} / {batchnorms[2]}",
                actions["affine fold"],
                sum("not_made" in record or "no_oracle" in record for record in found),
            ]
        )
    head = ["graphs", "seen", "wrong", "raised", "largest error", "BatchNorms folded / affine / kept", "affines folded"]
    text = (
        f"`python benchmarks/bench_onnx_random.py`: {total} random graphs, in float64 at two batches and, where the "
        f"sizes are free, two sizes: {len(wrong)} wrong at 1e-9 of the peak{': ' if wrong else ''}{', '.join(wrong)}. "
        "Those that torch's exporter or the float64 kernels do not take are counted in the last column."
        f"\n\n{table([*head, 'left out'], rows)}"
    )
    write_section("Random graphs", text)


def main() -> None:
    """Do what is asked for."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--table"]:
        write_table()
        return
    kind, first, last = sys.argv[1:]
    run(kind, int(first), int(last))


if __name__ == "__main__":
    main()

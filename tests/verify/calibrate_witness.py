"""How well another runtime judges: wrong folds that it must catch, and right ones that it must let pass.

    python -m tests.verify.calibrate_witness [RUNTIME] [NETWORK ...]      (openvino; three small networks)

Each way to fold wrongly of tests/verify/mutants.py is put into each place of each network that takes it. The weights go
into the fold's ONNX export, which runs under the runtime and is compared with the float64 original as ``bnfold verify``
does. A mutant whose outputs under the runtime are those of the right fold, to the bit, cannot be seen there.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import bnfold
from bnfold.capture.nests import Leaf
from bnfold.export import to_onnx
from bnfold.verify.evaluate import cases_of, evaluate
from bnfold.verify.floor import Evaluated, NoiseFloor
from bnfold.verify.inputs import Case
from bnfold.verify.original import TorchOriginal
from bnfold.verify.reference import exact_arithmetic
from bnfold.verify.runtime import OrtModel
from bnfold.verify.witness import ONNX_LIMITS, Witness, compare
from bnfold.witness.registry import find
from tests.verify.mutants import EVERY, MUTANTS, apply, sites_of

NETWORKS = ("lenet", "inverted-residual", "grouped-and-square")


class Judge:
    """One network, its export, and what the original answers."""

    def __init__(self, runtime: str, network: str, folder: Path) -> None:
        self.model, self.inputs = EVERY[network]()
        self.folding = bnfold.fold(self.model, self.inputs)
        self.path = folder / "model.onnx"
        self.exported = to_onnx(self.folding.module, self.inputs, optimize=False)
        self.load = find(runtime).load()
        self.runtime = runtime
        self.evaluated: list[Evaluated] = []
        original = TorchOriginal(self.model)
        shapes = [value.shape[1:] for value in self.inputs]  # the file's batch is free, and no more
        cases = [
            case
            for case in cases_of(self.inputs, (), seed=0, thorough=False)
            if [value.shape[1:] for value in case.inputs] == shapes
        ]
        assert evaluate(original, cases, self.evaluated, [], lambda _sentence, _done: None) is None
        self.floors = NoiseFloor(self.evaluated, original.moved, seed=0)
        self.right = {name: value.clone() for name, value in self.folding.module.state_dict().items()}

    def judged(self) -> tuple[bool, list[Any]]:
        """Return whether the folded module's weights pass under the runtime, and the outputs."""
        state = self.folding.module.state_dict()
        for tensor in self.exported.graph.initializer:
            if tensor.name in state:
                tensor.raw_data = state[tensor.name].detach().contiguous().numpy().tobytes()
        self.path.write_bytes(self.exported.SerializeToString())
        declared, run = OrtModel(self.path, "off", threads=1), self.load(str(self.path), threads=1)
        outputs: list[Any] = []

        def answer(case: Case) -> list[Leaf]:
            found = [torch.as_tensor(value).clone() for value in run(declared.feed(case.inputs))]
            outputs.extend(found)
            return [Leaf(name, value) for name, value in zip(declared.output_names, found, strict=True)]

        witness = Witness(self.runtime, "witness", answer, ONNX_LIMITS, exported=True)
        passed = all(comparison.passed for comparison in compare(witness, self.evaluated, self.floors.apart(), []))
        return passed, outputs


def measured(runtime: str, network: str) -> Counter[str]:
    """Return how many mutants of a network were caught, could not be seen, and were missed."""
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, exact_arithmetic():
        judge = Judge(runtime, network, Path(folder))
        passed, right = judge.judged()
        count["right, passed" if passed else "right, FAILED"] += 1
        for site in sites_of(judge.model, judge.folding):
            for name, mutant in MUTANTS.items():
                if not apply(mutant, site):
                    continue
                passed, outputs = judge.judged()
                same = len(outputs) == len(right) and all(map(torch.equal, outputs, right))
                count["caught" if not passed else "not to be seen" if same else "MISSED"] += 1
                if passed:
                    print(f"{network}: {name} at {site.name}: {'the same outputs' if same else 'MISSED'}", flush=True)
                site.folded.load_state_dict({"weight": judge.right[f"{_name(judge, site)}.weight"],
                                             "bias": judge.right[f"{_name(judge, site)}.bias"]})  # fmt: skip
    return count


def _name(judge: Judge, site: Any) -> str:
    return next(name for name, part in judge.folding.module.named_modules() if part is site.folded)


def main() -> None:
    """Measure, and print a row for each network."""
    runtime, *networks = [*sys.argv[1:], "openvino"][: max(1, len(sys.argv) - 1)]
    print("| network | right fold | mutants caught | not to be seen | missed |\n| --- | --- | --- | --- | --- |")
    for network in networks or NETWORKS:
        count = measured(runtime, network)
        right = "passes" if count["right, passed"] else "FAILS"
        caught, same, missed = (count[key] for key in ("caught", "not to be seen", "MISSED"))
        print(f"| {network} | {right} | {caught} | {same} | {missed} |", flush=True)


if __name__ == "__main__":
    main()

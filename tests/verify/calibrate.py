"""Measure how far apart right and wrong folds stand, in noise floors: the figures of docs/verification.md.

    python -m tests.verify.calibrate mutants random zoo   # each writes build/calibration/NAME.jsonl, and goes on there
    python -m tests.verify.calibrate table                # says what they hold

``mutants`` applies every mistake of :mod:`tests.verify.mutants` to sites of many networks; ``random`` folds a thousand
random networks; ``zoo`` folds the family sample of timm and torchvision, three seeds each, at the reduced input sizes
of the zoo benchmark. Every record holds the verdict and the errors in noise floors.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import BnfoldError
from bnfold.verify import Report, verify
from tests.fold.random_graphs import random_net
from tests.networks import normal
from tests.verify.mutants import EVERY, FULL, MUTANTS, apply, picks, sites_of

Record = dict[str, Any]
FOLDER = Path("build/calibration")
RANDOM_NETWORKS = 1000
ZOO_SEEDS = 3
NARROW = 3.0  # in noise floors; from here on a comparison might not pass without the plan, whose limits are narrower


def floors_of(report: Report) -> dict[str, float]:
    """Return the largest error of each witness, in noise floors."""
    found: dict[str, float] = {}
    for comparison in report.comparisons:
        witness = comparison.name.split(":")[0]
        if not math.isnan(comparison.floors):
            found[witness] = max(found.get(witness, 0.0), comparison.floors)
    return found


def seen(report: Report) -> Record:
    return {"verdict": report.verdict, "reason": report.reason, "floors": floors_of(report)}


def mutants(done: set[str]) -> Iterator[Record]:
    """Every mutant at up to three sites of every network."""
    for network in FULL:
        model, inputs = EVERY[network]()
        for pick in picks(model, inputs):
            for mutant in MUTANTS:
                key = f"{network}/{pick}/{mutant}"
                if key not in done:
                    record = mutated(model, inputs, pick, mutant)
                    yield {"key": key, **(record or {"applies": False})}


def mutated(model: nn.Module, inputs: tuple[Tensor, ...], pick: int, mutant: str) -> Record | None:
    """Return what the verifier says of one mutant, or None where the mistake changes no weight there."""
    folding = bnfold.fold(model, inputs)
    site = sites_of(model, folding)[pick]
    if not apply(MUTANTS[mutant], site):
        return None
    right = bnfold.fold(model, inputs).module
    planned = verify(model, folding.module, inputs, onnx=False, folding=folding)
    alone = verify(model, folding.module, inputs, onnx=False)
    return {
        "applies": True,
        "site": site.name,
        "planned": {**seen(planned), "located": planned.located == site.name},
        "alone": seen(alone),
        "silent": alone.passed and unchanged(right, folding.module, inputs),
        "allclose": close(model(*inputs), folding.module(*inputs)),
    }


def unchanged(right: nn.Module, wrong: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether two modules answer the same to the last bit on twenty inputs."""
    given = (tuple(normal(*value.shape, seed=seed) * 3 for value in inputs) for seed in range(20))
    return all(torch.equal(right(*x), wrong(*x)) for x in given)


def close(left: Any, right: Any) -> bool:
    """The control: what the usual tolerances say."""
    return torch.allclose(left, right, rtol=1e-3, atol=1e-5)


def random(done: set[str]) -> Iterator[Record]:
    """Random networks in float32, folded rightly."""
    for seed in range(RANDOM_NETWORKS):
        if str(seed) not in done:
            net, x = random_net(seed)
            yield {"key": str(seed), **folded(net.float(), (x.float(),), seed)}


def zoo(done: set[str]) -> Iterator[Record]:
    """The family sample of the zoo, folded rightly."""
    from benchmarks.zoo_build import _DETECTORS, build, fresh_inputs
    from benchmarks.zoo_list import read_list, sample

    entries = sample(read_list())
    for seed in range(ZOO_SEEDS):
        for entry in entries:
            key = f"{entry.key}/{seed}"
            if key in done:
                continue
            begin = time.process_time()
            try:
                subject = build(entry, seed=seed)
                inputs = fresh_inputs(entry, subject.shape, batch=2, seed=seed + 10)
                if entry.family in _DETECTORS:
                    inputs = (torch.stack(inputs[0]),)  # a batch is as good as a list to them
                record = folded(subject.model, inputs, seed)
            except BnfoldError as error:
                record = {"verdict": "refused", "reason": str(error)}
            except Exception as error:
                record = {"verdict": "not built", "reason": f"{type(error).__name__}: {error}"}
            yield {"key": key, **record, "seconds": round(time.process_time() - begin, 1)}


def folded(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> Record:
    """Return what the verifier says of a right fold with its plan; and without, where that could come out otherwise."""
    folding = bnfold.fold(model, inputs)
    planned = verify(model, folding.module, inputs, onnx=False, folding=folding, seed=seed)
    alone = planned
    if max([0.0, *floors_of(planned).values()]) > NARROW or not planned.passed:
        alone = verify(model, folding.module, inputs, onnx=False, seed=seed)
    return {**seen(planned), "alone": seen(alone), "batchnorms": len(folding.plan)}


WORK = {"mutants": mutants, "random": random, "zoo": zoo}


def read(name: str) -> list[Record]:
    path = FOLDER / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(name: str) -> None:
    """Do what is still to be done, and write a line for each."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = {record["key"] for record in read(name)}
    with (FOLDER / f"{name}.jsonl").open("a") as file:
        for record in WORK[name](done):
            file.write(json.dumps(record) + "\n")
            file.flush()


def spread(values: list[float]) -> str:
    """Return the quantiles of a distribution."""
    ordered = sorted(values)
    if not ordered:
        return "nothing measured"
    at = {f"{share:.0%}": ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.01, 0.5, 0.99)}
    told = ", ".join(f"{name} {value:.3g}" for name, value in at.items())
    return f"{len(ordered)}: least {ordered[0]:.3g}, {told}, largest {ordered[-1]:.3g}"


def table() -> None:
    """Say what was measured."""
    found = [record for record in read("mutants") if record["applies"]]
    if found:
        networks = {record["key"].split("/")[0] for record in found}
        kinds = {record["key"].split("/")[2] for record in found}
        loud = [record for record in found if not record["silent"]]
        print(f"mutants: {len(found)} of {len(kinds)} kinds on {len(networks)} networks")
        print(f"  caught with the plan: {sum(r['planned']['verdict'] == 'failed' for r in found)} of {len(found)}")
        print(f"  named rightly: {sum(r['planned']['located'] for r in found)} of {len(found)}")
        print(f"  caught by outputs alone: {sum(r['alone']['verdict'] == 'failed' for r in loud)} of {len(loud)}")
        print(f"  that change no output: {[r['key'] for r in found if r['silent']]}")
        print(f"  missed: {[r['key'] for r in loud if r['alone']['verdict'] != 'failed']}")
        print(f"  allclose(rtol=1e-3, atol=1e-5) lets through: {sum(r['allclose'] for r in found)}")
        least = sorted((r["alone"]["floors"].get("torch", math.inf), r["key"]) for r in loud)
        print("  floors of torch:", spread([value for value, _ in least if math.isfinite(value)]), least[:3])
    for name in ("random", "zoo"):
        records = read(name)
        if not records:
            continue
        print(f"{name}: {len(records)} right folds, {sum(r.get('batchnorms', 0) for r in records)} BatchNorms")
        print("  with the plan:", dict(Counter(r["verdict"] for r in records)))
        print("  without:", dict(Counter(r.get("alone", r)["verdict"] for r in records)))
        judged = [r for r in records if "floors" in r]
        for witness in ("rounded weights", "torch"):
            values = [r["floors"][witness] for r in judged if witness in r["floors"]]
            print(f"  floors of {witness}:", spread(values))
        for record in records:
            for how, said in (("with the plan", record), ("without", record.get("alone", record))):
                if said["verdict"] != "passed":
                    print(f"  {record['key']} {how}: {said['verdict']}: {said['reason'][:200]}")
        if "seconds" in records[0]:
            print("  CPU seconds, median:", statistics.median(r["seconds"] for r in records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*WORK, "table"])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in parser.parse_args().what:
        if name == "table":
            table()
        else:
            run(name)


if __name__ == "__main__":
    main()

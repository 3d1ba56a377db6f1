"""The same on Ray, where it is installed: one machine, and two nodes of which one is killed."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bnfold.batch
from bnfold.batch.cluster import Cluster, _unpacked
from bnfold.batch.job import Job, with_paths
from bnfold.errors import MissingPackageError, UsageError
from tests.batch import sixteen
from tests.batch.test_running import WORKS, Hears, rows, start, wait_for_records

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 2 << 30
QUIET = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster on this machine: a head without cores, and a node with two."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    before = os.environ.get("PYTHONPATH")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes.add_node(num_cpus=2, memory=MEMORY, object_store_memory=100 << 20)
    ray.init(address=nodes.address, log_to_driver=False)
    ray.nodes_of_test = nodes
    yield ray
    ray.shutdown()
    nodes.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def test_without_ray_a_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackageError, match=r"needs Ray, which is not installed. Run `pip install 'bnfold\[ray\]'`"
    ):
        bnfold.batch.run(rows(tmp_path, {"name": "a"}), tmp_path / "out", ray="")
    assert not (tmp_path / "out" / "results.jsonl").exists()


class Fake(ModuleType):
    """As much of Ray as a look at its nodes needs."""

    exceptions = ModuleType("ray.exceptions")

    def __init__(self, *nodes: dict[str, float]) -> None:
        super().__init__("ray")
        self._nodes = [{"Alive": True, "Resources": node} for node in nodes]

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def remote(self, **_options: Any) -> Any:
        return lambda function: function


def test_the_largest_model_is_the_one_that_fits_the_largest_node_with_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake({"CPU": 4, "memory": 10.0}, {"CPU": 2, "memory": 30.0}, {"memory": 90.0})
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    cluster = Cluster("", output=tmp_path)
    assert (cluster.largest, cluster.memory, cluster.slots) == (30, 40, 12)
    fake._nodes = fake._nodes[2:]
    with pytest.raises(UsageError, match="No node of the Ray cluster has a core"):
        Cluster("", output=tmp_path)


def test_files_that_are_sent_stand_beside_each_other_and_the_job_names_them_there(tmp_path: Path) -> None:
    names = ["/here/a.onnx", "/here/a.onnx.data", "/there/a.onnx"]
    placed = list(_unpacked(names, (b"1", b"2", b"3"), str(tmp_path)))
    assert [Path(path).read_bytes() for path in placed] == [b"1", b"2", b"3"]
    assert [Path(path).name for path in placed] == ["a.onnx", "a.onnx.data", "a.onnx"]
    assert Path(placed[0]).parent == Path(placed[1]).parent != Path(placed[2]).parent
    job = Job("a", names[0], (names[0], f"--inputs={names[2]}", "--output=/out/a/b"), "/out/a", tuple(names))
    moved = with_paths(job, dict(zip(names, placed, strict=True)) | {"/out/a": "/o"})
    assert moved.arguments == (placed[0], f"--inputs={placed[2]}", "--output=/o/b")
    assert (moved.source, moved.folder, moved.reads) == (placed[0], "/o", tuple(placed))


@QUIET
@pytest.mark.parametrize("ship", [False, True])
def test_models_run_on_ray_with_their_limits_and_leave_the_same_records(ship: bool, ray: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("content")
    manifest = rows(tmp_path, {"name": "a", "source": "a.pt"}, {"name": "b"}, {"name": "c"})
    here = bnfold.batch.run(manifest, tmp_path / "here", work=WORKS + "fine")
    there = bnfold.batch.run(manifest, tmp_path / "there", work=WORKS + "fine", ray="", ship=ship)
    assert sixteen.facts(there) == sixteen.facts(here)
    assert (tmp_path / "there/models/a/log.txt").read_text() == "said\n"
    again = Hears()
    assert bnfold.batch.run(manifest, tmp_path / "there", work=WORKS + "fine", ray="", progress=again) == there
    assert again.records == []

    manifest = rows(tmp_path, {"name": "a", "timeout": 1})
    (record,) = bnfold.batch.run(manifest, tmp_path / "there", work=WORKS + "sleeps", ray="", ship=ship)
    assert record["outcome"] == "timeout"
    (record,) = bnfold.batch.run(manifest, tmp_path / "there", work=WORKS + "kills_itself", ray="", ship=ship)
    assert record["outcome"] == "died"


@QUIET
def test_a_folder_that_the_node_does_not_share_is_told(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _count: "token")
    start = Cluster.start

    def elsewhere(self: Cluster, attempt: Any) -> None:
        self._token = "another"
        start(self, attempt)

    monkeypatch.setattr(Cluster, "start", elsewhere)
    (record,) = bnfold.batch.run(rows(tmp_path, {"name": "a"}), tmp_path / "out", work=WORKS + "fine", ray="")
    assert record["outcome"] == "failed"
    assert "is not shared with node" in record["error"]
    assert record["error"].endswith("or --ship.")


@QUIET
def test_a_driver_that_is_killed_on_a_cluster_is_started_again(ray: Any, tmp_path: Path) -> None:
    names = {f"m{number}" for number in range(6)}
    manifest = rows(tmp_path, *({"name": name} for name in sorted(names)))
    arguments = (tmp_path, manifest, WORKS + "short", ray.nodes_of_test.address)
    process = start(*arguments)
    wait_for_records(tmp_path / "out", 2, process)
    process.kill()
    process.wait()
    recorded = {record["name"] for record in sixteen.read(tmp_path / "out")}
    assert 2 <= len(recorded) < 6
    assert start(*arguments).wait(timeout=200) == 0
    assert Counter(record["name"] for record in sixteen.read(tmp_path / "out")) == Counter(names)
    runs = Counter((tmp_path / "out" / "runs").read_text().split())
    assert {runs[name] for name in recorded} == {1}, "what was recorded was done again"


def run_and_kill_a_node(ray: Any, manifest: Path, output: Path, work: str, after: int) -> tuple[list[Any], bool]:
    """Run on two nodes and kill one after some records; return the records, and whether models were running on it."""
    node = ray.nodes_of_test.add_node(num_cpus=2, memory=MEMORY, object_store_memory=100 << 20)
    ray.nodes_of_test.wait_for_nodes()

    def kill() -> None:
        wait_for_records(output, after)
        ray.nodes_of_test.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    records = bnfold.batch.run(manifest, output, work=work, ray="", memory="1GiB")
    killer.join(60)
    return records, any(record["attempts"] > 1 and "went away" in record["before"][0] for record in records)


@QUIET
def test_a_node_that_is_killed_costs_no_record(ray: Any, tmp_path: Path) -> None:
    names = {f"m{number}" for number in range(10)}
    manifest = rows(tmp_path, *({"name": name} for name in sorted(names)))
    (tmp_path / "out").mkdir()
    records, lost = run_and_kill_a_node(ray, manifest, tmp_path / "out", WORKS + "slow", after=3)
    assert Counter(record["name"] for record in sixteen.read(tmp_path / "out")) == Counter(names)
    assert {record["outcome"] for record in records} == {"equivalent"}
    assert lost, "no model ran on the node when it was killed"


@QUIET
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sixteen_models_on_ray_and_with_a_node_killed_have_the_records_of_one_machine(ray: Any, tmp_path: Path) -> None:
    manifest = sixteen.make(tmp_path / "models", hang=40.0)
    alone = bnfold.batch.run(manifest, tmp_path / "ray", ray="", memory="1GiB")
    assert {record["name"]: record["outcome"] for record in alone} == sixteen.EXPECTED
    killed, lost = run_and_kill_a_node(ray, manifest, tmp_path / "killed", "bnfold.batch.child:fold", after=4)
    facts = sixteen.facts(killed)
    for name, fact in sixteen.facts(alone).items():
        assert {**facts[name], "attempts": 0} == {**fact, "attempts": 0}, name
    assert lost

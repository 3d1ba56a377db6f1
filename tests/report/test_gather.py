"""What the page shows is so: the ways end where the affines went, the numbers are the layers', the errors are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bnfold
from bnfold.report.details import Details, Picture, Vertex, files_read
from bnfold.report.gather import details_of
from tests.fold.random_graphs import random_net
from tests.graph.test_ways import Loops
from tests.networks import NETWORKS, randomise

NAMES = sorted(NETWORKS)


def gathered(name: str) -> tuple[bnfold.Folding, Details]:
    model, inputs = NETWORKS[name]()
    folding = bnfold.fold(model, inputs)
    return folding, details_of(folding, inputs, seed=3)


def reaches(picture: Picture, edges: set[tuple[int, int]], start: int, ends: set[int]) -> bool:
    """Whether the edges of a way, taken in any direction, join the BatchNorm to each end."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        for pair in edges:
            if node in pair:
                (other,) = set(pair) - {node}
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
    return ends <= seen


@pytest.mark.parametrize("name", NAMES)
def test_a_way_runs_along_values_from_the_batchnorm_to_what_absorbed_it(name: str) -> None:
    folding, details = gathered(name)
    (picture,) = details.pictures
    ways = {way.decision: way for way in picture.ways}
    assert len(ways) == len(folding.plan)
    for number, decision in enumerate(folding.plan):
        way = ways[number]
        assert picture.before[way.site].role == "batchnorm"
        assert picture.before[way.site].label == decision.batchnorm
        assert {picture.before[end].label for end in way.into} == set(decision.into)
        assert all(read in picture.before[reader].inputs for reader, read in way.edges)
        assert reaches(picture, set(way.edges), way.site, set(way.into))
        if not decision.into:
            assert not way.edges


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_after_is_the_folded_one(name: str) -> None:
    folding, details = gathered(name)
    (picture,) = details.pictures
    roles = [vertex.role for vertex in picture.after]
    assert roles.count("batchnorm") == folding.plan.summary["keep"]
    assert roles.count("affine") == folding.plan.summary["affine"]
    before = {vertex.name for vertex in picture.before}
    assert {vertex.name for vertex in picture.after if vertex.role in ("affine", "weights", "end")} <= before


@pytest.mark.parametrize("name", ["seed", "vgg-mixed-signs", "repvgg"])
def test_the_numbers_are_those_of_the_layers(name: str) -> None:
    folding, details = gathered(name)
    layers = dict(NETWORKS[name]()[0].named_modules())
    assert len(details.affines) == len(folding.plan)
    for affine in details.affines:
        expected = bnfold.affine_of(layers[folding.plan[affine.decision].batchnorm])
        assert list(affine.scale) == expected.scale.tolist()
        assert list(affine.shift) == expected.shift.tolist()
        assert affine.negative == int((expected.scale < 0).sum())


def test_scales_near_zero_are_counted_against_the_largest() -> None:
    layer = nn.BatchNorm2d(4)
    with torch.no_grad():
        assert layer.running_var is not None
        layer.running_var.fill_(1 - layer.eps)
        layer.weight.copy_(torch.tensor([2.0, 0.0019, -0.0021, 0.0]))
    model = nn.Sequential(nn.Conv2d(1, 4, 1), layer).eval()
    (affine,) = details_of(bnfold.fold(model), None, seed=0).affines
    assert (affine.near_zero, affine.negative) == (2, 1)


def test_errors_at_the_sites_are_of_the_size_of_rounding() -> None:
    folding, details = gathered("resnet18")
    assert len(details.sites) == len(folding.plan)
    for site in details.sites:
        assert 0 < site.floor < 1e-6
        assert site.error < 10 * site.floor


def test_a_wrong_weight_shows_at_its_site_and_not_before() -> None:
    model, inputs = NETWORKS["resnet18"]()
    folding = bnfold.fold(model, inputs)
    with torch.no_grad():
        bias = folding.module.get_submodule("layer2.0.conv1").bias
        assert isinstance(bias, torch.Tensor)
        bias.add_(0.01)
    details = details_of(folding, inputs, seed=0)
    far = [folding.plan[site.decision].batchnorm for site in details.sites if site.error > 100 * site.floor]
    assert far[0] == "layer2.0.bn1"
    names = [decision.batchnorm for decision in folding.plan]
    assert not set(far) & set(names[: names.index("layer2.0.bn1")])


def test_a_model_in_pieces_is_drawn_in_pieces() -> None:
    model = randomise(Loops())
    x = torch.randn(2, 3, 5, 5)
    folding = bnfold.fold(model, x)
    details = details_of(folding, (x,), seed=0)
    assert [picture.title for picture in details.pictures] == ["stem", "block"]
    for picture, way_of in zip(details.pictures, (0, 1), strict=True):
        (way,) = picture.ways
        assert way.decision == way_of
        assert [picture.before[end].label for end in way.into] == ["0"]
        assert "batchnorm" not in [vertex.role for vertex in picture.after]
    assert details.remarks == ("Errors at each site are measured only where the model was captured as a whole.",)


def test_values_that_hold_shapes_are_not_drawn() -> None:
    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn(self.conv(x))
            return x.view(x.size(0), -1)

    folding = bnfold.fold(Flattens().eval(), torch.randn(2, 1, 5, 5))
    (picture,) = details_of(folding, None, seed=0).pictures
    assert [vertex.label for vertex in picture.before] == ["x", "conv", "bn", "view", "output"]
    assert picture.before[1] == Vertex("conv", "conv", "Conv2d 1→2, 3×3", "weights", (0,))


def test_files_are_known_by_their_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    (file,) = files_read([path, tmp_path, tmp_path / "gone"])
    assert file.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file.size == 3


@pytest.mark.parametrize("seed", [*range(12), 20, 40, 100])
def test_the_ways_in_random_graphs_end_where_the_affines_went(seed: int) -> None:
    net, x = random_net(seed)
    folding = bnfold.fold(net, x)
    (picture,) = details_of(folding, None, seed=0).pictures
    for way in picture.ways:
        decision = folding.plan[way.decision]
        assert {picture.before[end].label for end in way.into} == set(decision.into)
        assert reaches(picture, set(way.edges), way.site, set(way.into))

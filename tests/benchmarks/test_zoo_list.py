"""Selecting, sampling and sharding the list of models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.zoo_list import Entry, read_list, sample, select, shard


def entry(
    model: str, *, library: str = "timm", family: str = "resnet", parameters: int = 10, traces: bool = True
) -> Entry:
    return Entry(library, family, model, parameters, 1, ("BatchNorm2d",), (3, 224, 224), traces)


ENTRIES = [
    entry("resnet50", parameters=25),
    entry("resnet18", parameters=11),
    entry("vgg11_bn", family="vgg", parameters=132),
    entry("resnet18", library="torchvision", parameters=11),
    entry("resnet18d_same", parameters=12, traces=False),
]


def keys(entries: list[Entry]) -> list[str]:
    return [one.key for one in entries]


def test_a_selection_comes_smallest_first() -> None:
    assert keys(select(ENTRIES)) == [
        "timm/resnet18",
        "torchvision/resnet18",
        "timm/resnet18d_same",
        "timm/resnet50",
        "timm/vgg11_bn",
    ]


def test_patterns_match_names_with_and_without_the_library() -> None:
    assert keys(select(ENTRIES, patterns=["resnet18"])) == ["timm/resnet18", "torchvision/resnet18"]
    assert keys(select(ENTRIES, patterns=["timm/resnet1*", "vgg*"])) == [
        "timm/resnet18",
        "timm/resnet18d_same",
        "timm/vgg11_bn",
    ]


def test_every_condition_must_hold() -> None:
    assert keys(select(ENTRIES, families=["resnet"], libraries=["timm"], max_parameters=12)) == [
        "timm/resnet18",
        "timm/resnet18d_same",
    ]
    assert keys(select(ENTRIES, families=["torchvision/*"])) == ["torchvision/resnet18"]


def test_clients_are_the_libraries_whose_networks_are_built_by_an_expression() -> None:
    client = replace(entry("UNet", library="monai"), builder="monai.networks.nets:UNet(2)")
    assert keys(select([*ENTRIES, client], libraries=["clients"])) == ["monai/UNet"]
    assert keys(select([*ENTRIES, client], libraries=["mon*", "torchvision"])) == ["monai/UNet", "torchvision/resnet18"]


def test_a_sample_is_the_smallest_of_each_kind() -> None:
    assert keys(sample(ENTRIES)) == ["timm/resnet18", "torchvision/resnet18", "timm/resnet18d_same", "timm/vgg11_bn"]


def test_the_sample_of_the_zoo_has_every_family() -> None:
    everything = select(read_list(), libraries=["timm", "torchvision"])
    chosen = sample(everything)
    assert {(e.library, e.family) for e in chosen} == {(e.library, e.family) for e in everything}
    assert 70 <= len(chosen) <= 110


def test_shards_are_disjoint_and_complete() -> None:
    parts = [shard(ENTRIES, f"{part}/3") for part in (1, 2, 3)]
    assert sorted(keys([one for part in parts for one in part])) == sorted(keys(ENTRIES))
    assert [len(part) for part in parts] == [2, 2, 1]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "/3", "a/b", "1/0", "-1/3", ""])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a shard: write 1/4"):
        shard(ENTRIES, text)

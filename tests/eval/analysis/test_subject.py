"""The sample of images that the analyses look at: how it is drawn from one data set and from several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from flexiclip_eval.analysis.subject import draw_sample
from flexiclip_eval.suites.load import load_datasets
from kit.evaluation import toys, write_shards

from flexiclip.model_folder import LoadedModel, load_model

BROKEN = (2, 20)


def loaded(place: Path) -> LoadedModel:
    return load_model(str(place / "model"))


def test_a_sample_is_drawn_once_and_mixes_the_sets(place: Path) -> None:
    datasets = load_datasets([str(place / "toys.yaml")])
    transform = loaded(place).transform
    everything = draw_sample(datasets, transform, 23)
    part = draw_sample(datasets, transform, 9)
    assert torch.equal(part.images, everything.images[: len(part.images)])
    assert part.images.dtype == torch.uint8
    captions = [toy.captions[0] for toy in toys(23, BROKEN) if not toy.broken]
    assert sorted(map(str, everything.texts)) == sorted(captions)
    assert everything.texts != captions


def test_a_sample_is_drawn_from_all_data_sets_together(place: Path) -> None:
    datasets = load_datasets([str(place / "toys.yaml")])
    others = replace(datasets[0], name="others", shards=write_shards(place / "others", toys(43)[23:], (20,)))
    own, other = ({toy.captions[0] for toy in items} for items in (toys(23), toys(43)[23:]))
    drawn = draw_sample([datasets[0], others], loaded(place).transform, 12).texts
    assert min(sum(text in captions for text in drawn) for captions in (own, other)) >= 3
    assert [text in own for text in drawn] != sorted(text in own for text in drawn)
    assert [text in other for text in drawn] != sorted(text in other for text in drawn)


def test_without_captions_an_image_is_asked_for_by_the_first_prompt_of_its_class(place: Path) -> None:
    (dataset,) = load_datasets([str(place / "toys.yaml")])
    labelled = replace(dataset, tasks=dataset.tasks[1:])
    texts = draw_sample([labelled], loaded(place).transform, 23).texts
    categories = [toy.category for toy in toys(23, BROKEN) if not toy.broken]
    assert sorted(map(str, texts)) == sorted(f"a photo of {category}" for category in categories)

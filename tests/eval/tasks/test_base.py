"""Examples of what a task finds: half of them are wrong, and each names what was found."""

from __future__ import annotations

import numpy as np
import torch
from flexiclip_eval.tasks import search
from flexiclip_eval.tasks.base import found_examples
from flexiclip_eval.tasks.retrieval import merged_pairs, retrieval_metrics
from kit.evaluation import unit


def _unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(unit(rng.normal(size=shape)).astype(np.float32))


def test_examples_are_half_wrong_and_name_what_was_found() -> None:
    rng = np.random.default_rng(4)
    pairs = merged_pairs([[f"c{i}", f"d{i % 30}"] for i in range(60)])
    image_z, text_z = _unit(rng, 60, 8), _unit(rng, len(pairs.captions), 8)
    text_z[:40] = image_z[[int(pairs.by_caption.of(c, c + 1)[1][0]) for c in range(40)]]  # these find their image
    ranks = retrieval_metrics(image_z, text_z, pairs)[1]
    scores = search.texts_to_images(text_z, image_z)
    examples = found_examples(scores, pairs.by_caption, ranks, pairs.captions)
    assert len(examples) == 24
    assert sum(example["rank"] > 1 for example in examples) == 12
    assert examples == found_examples(scores, pairs.by_caption, ranks, pairs.captions)
    for example in examples:
        order = np.argsort(-(text_z[pairs.captions.index(example["caption"])] @ image_z.T).numpy())
        assert example["ranked"] == order[:5].tolist()
        assert example["rank"] == 1 + min(order.tolist().index(i) for i in example["positives"])

"""Zero-shot retrieval: recall@k and the median rank in both directions, as CLIP_benchmark counts them.

A query is a hit when ANY of its positives stands among the first k. An image may own several captions and a caption several
images: where equal captions are merged (TaskConfig.merge_captions), a caption that stands under three images is one query with
three positives. `image_retrieval_*` is text -> image, `text_retrieval_*` image -> text; the median rank is that of the best
positive, counted from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tasks.base import Context, Prepared, Result, found_examples
from flexiclip_eval.tasks.rerank import rerank
from flexiclip_eval.tasks.search import (
    KS,
    Answers,
    Ties,
    answers,
    find,
    hit_probability,
    images_to_texts,
    mean_rank,
    texts_to_images,
)
from torch import Tensor

from flexiclip.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """Who belongs to whom: pair p joins image `image[p]` and caption `caption[p]`, int64 [P]; captions: their texts."""

    captions: list[str]
    image: Tensor
    caption: Tensor
    images: int

    @property
    def by_caption(self) -> Answers:
        """The images that answer each caption."""
        return answers(self.caption, self.image, len(self.captions), self.images)

    @property
    def by_image(self) -> Answers:
        """The captions that answer each image."""
        return answers(self.image, self.caption, self.images, len(self.captions))

    def to(self, device: torch.device) -> Pairs:
        """The same with its tensors on `device`."""
        return Pairs(self.captions, self.image.to(device), self.caption.to(device), self.images)


def prepare_retrieval(context: Context) -> Prepared:
    """Captions find images, and images captions. Raises UserError for an image without a caption."""
    for record in context.records:
        if not record.captions:
            raise UserError(
                f"task {context.task.name or 'retrieval'}: {record.sample} has no caption; name other members in captions"
            )
    texts = [record.captions for record in context.records]
    pairs = merged_pairs(texts) if context.task.merge_captions else plain_pairs(texts)
    text_z = context.embed_texts(pairs.captions)
    pairs = pairs.to(text_z.device)
    ties = context.task.ties

    def measure(image_z: Tensor, _: Tensor) -> Result:
        metrics, ranks = retrieval_metrics(image_z, text_z, pairs, ties)
        examples = found_examples(texts_to_images(text_z, image_z), pairs.by_caption, ranks, pairs.captions)
        return Result(metrics, {"found": examples})

    info = TaskInfo(context.name, "zeroshot_retrieval", retrieval_chance(pairs), captions=len(pairs.captions))
    return Prepared(info, measure, lambda short_z, long_z: rerank(text_z, short_z, long_z, pairs.by_caption))


def merged_pairs(captions: Sequence[Sequence[str]]) -> Pairs:
    """The pairs of a data set whose equal captions are one; captions[i] are the texts of image i."""
    number: dict[str, int] = {}
    pairs = [(i, number.setdefault(text, len(number))) for i, texts in enumerate(captions) for text in dict.fromkeys(texts)]
    image, caption = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return Pairs(list(number), image, caption, len(captions))


def plain_pairs(captions: Sequence[Sequence[str]]) -> Pairs:
    """The pairs of a data set in which every caption stands alone, whatever its text."""
    image = torch.tensor([i for i, texts in enumerate(captions) for _ in texts], dtype=torch.int64)
    return Pairs([text for texts in captions for text in texts], image, torch.arange(len(image)), len(captions))


def retrieval_metrics(image_z: Tensor, text_z: Tensor, pairs: Pairs, ties: Ties = "chance") -> tuple[dict[str, float], Tensor]:
    """(recalls in 0..1 and median ranks, rank of each caption's best image float64 [T]).

    image_z [N, D], text_z [T, D]: unit rows.
    """
    images = find(texts_to_images(text_z, image_z), image_z, pairs.by_caption, ties)
    texts = find(images_to_texts(image_z, text_z), text_z, pairs.by_image, ties)
    metrics: dict[str, float] = {}
    for side, found in (("image", images), ("text", texts)):
        metrics |= {f"{side}_retrieval_recall@{k}": recall for k, recall in found.recalls().items()}
    for side, found in (("image", images), ("text", texts)):
        metrics[f"{side}_retrieval_median_rank"] = _median(found.rank)
    return metrics, images.rank


def retrieval_chance(pairs: Pairs) -> dict[str, float]:
    """The same numbers for a model that knows nothing: every item of the gallery tied."""
    chance = {}
    ranks = {}
    for side, known in (("image", pairs.by_caption), ("text", pairs.by_image)):
        positive = torch.bincount(known.query, minlength=known.queries)
        none, everything = torch.zeros_like(positive), torch.full_like(positive, known.gallery)
        for k in KS:
            chance[f"{side}_retrieval_recall@{k}"] = hit_probability(none, everything, positive, k).mean().item()
        ranks[f"{side}_retrieval_median_rank"] = _median(mean_rank(none, everything, positive))
    return chance | ranks


def _median(ranks: Tensor) -> float:
    """Between the two middle ones where their number is even (torch.median takes the lower)."""
    return float(np.median(ranks.cpu().numpy()))

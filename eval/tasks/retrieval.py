"""Zero-shot retrieval: recall@k and the median rank in both directions, counted as in CLIP_benchmark.

A query is a hit if ANY of its positives is among the first k. An image may have several captions, and a caption several images:
if equal captions are merged (TaskConfig.merge_captions), a caption of three images is one query with three positives.
`image_retrieval_*` is text -> image, and `text_retrieval_*` is image -> text. The median rank is that of the best positive,
counted from 1.
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
    """The pairs of images and captions that belong together: pair p is image `image[p]` with caption `caption[p]`."""

    captions: list[str]  # the texts
    image: Tensor  # int64 [P]
    caption: Tensor  # int64 [P]
    images: int  # number of images

    @property
    def by_caption(self) -> Answers:
        """The images that answer each caption."""
        return answers(self.caption, self.image, len(self.captions), self.images)

    @property
    def by_image(self) -> Answers:
        """The captions that answer each image."""
        return answers(self.image, self.caption, self.images, len(self.captions))

    def to(self, device: torch.device) -> Pairs:
        """Return the pairs with their tensors on `device`."""
        return Pairs(self.captions, self.image.to(device), self.caption.to(device), self.images)


def prepare_retrieval(context: Context) -> Prepared:
    """Prepare the task: pair captions with images, and embed the captions. Raises UserError for an image without a caption."""
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
    """Return the pairs of a data set where equal captions count as one; captions[i] are the texts of image i."""
    number: dict[str, int] = {}
    pairs = [(i, number.setdefault(text, len(number))) for i, texts in enumerate(captions) for text in dict.fromkeys(texts)]
    image, caption = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return Pairs(list(number), image, caption, len(captions))


def plain_pairs(captions: Sequence[Sequence[str]]) -> Pairs:
    """Return the pairs of a data set where every caption counts separately, even if its text occurs elsewhere."""
    image = torch.tensor([i for i, texts in enumerate(captions) for _ in texts], dtype=torch.int64)
    return Pairs([text for texts in captions for text in texts], image, torch.arange(len(image)), len(captions))


def retrieval_metrics(image_z: Tensor, text_z: Tensor, pairs: Pairs, ties: Ties = "chance") -> tuple[dict[str, float], Tensor]:
    """Return (recalls in 0..1 and median ranks from 1, the rank of each caption's best image float64 [T]).

    image_z [N, D], text_z [T, D]: unit rows. ties: how equal scores count (TaskConfig.ties). All ranks must call this.
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
    """Return the metrics of a model that knows nothing, for which every item of the gallery is tied."""
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
    """Return the median, which is between the two middle ranks if their number is even (torch.median takes the lower one)."""
    return float(np.median(ranks.cpu().numpy()))

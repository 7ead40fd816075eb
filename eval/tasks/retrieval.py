"""Retrieval in both directions: recall at 1, 5 and 10 and the median rank, as CLIP_benchmark counts them, and cascades.

A query is a hit if ANY of its positives is among the first k. An image may have several captions, and a caption several images:
if equal captions are merged (TaskConfig.merge_captions), a caption of three images is one query with three positives.
`image_retrieval_*` is text -> image, and `text_retrieval_*` is image -> text. The median rank is that of the best positive,
counted from 1.

In a cascade (tradeoffs.py), short embeddings choose K images for each caption, and long embeddings order these K. The images
after the first K stay in the order of the short embeddings. Ties inside the shortlist count by their probability. If images are
tied at the end of the shortlist, torch.topk decides which of them enter it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flexiclip_eval.rows import TaskInfo, binomial_error
from flexiclip_eval.tasks.base import Context, Prepared, Result, found_examples
from flexiclip_eval.tasks.search import (
    KS,
    Answers,
    Found,
    Ties,
    answers,
    counts,
    find,
    hits_at,
    images_to_texts,
    mean_rank,
    over_blocks,
    texts_to_images,
)
from flexiclip_eval.tradeoffs import CascadePoint, shortlists
from torch import Tensor

from flexiclip.distributed import gather_rows
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
        images, texts = search_both(image_z, text_z, pairs, ties)
        metrics = _metrics(images, texts)
        examples = found_examples(texts_to_images(text_z, image_z), pairs.by_caption, images.rank, pairs.captions)
        return Result(metrics, {"found": examples}, _errors(metrics, images, texts), images.hits[:, KS.index(5)].cpu())

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
    images, texts = search_both(image_z, text_z, pairs, ties)
    return _metrics(images, texts), images.rank


def search_both(image_z: Tensor, text_z: Tensor, pairs: Pairs, ties: Ties) -> tuple[Found, Found]:
    """Return (what the captions found among the images, what the images found among the captions). All ranks must call this."""
    images = find(texts_to_images(text_z, image_z), image_z, pairs.by_caption, ties)
    texts = find(images_to_texts(image_z, text_z), text_z, pairs.by_image, ties)
    return images, texts


def retrieval_chance(pairs: Pairs) -> dict[str, float]:
    """Return the metrics of a model that knows nothing, for which every item of the gallery is tied."""
    return _metrics(*map(_all_tied, (pairs.by_caption, pairs.by_image)))


def _all_tied(known: Answers) -> Found:
    positive = torch.bincount(known.query, minlength=known.queries)
    counted = torch.zeros_like(positive), torch.full_like(positive, known.gallery), positive
    return Found(hits_at(*counted), mean_rank(*counted))


def _metrics(images: Found, texts: Found) -> dict[str, float]:
    sides = {"image": images, "text": texts}
    recalls = {f"{side}_retrieval_recall@{k}": recall for side, found in sides.items() for k, recall in found.recalls().items()}
    # numpy's median is between the two middle ranks if their number is even; torch's is the lower one
    ranks = {f"{side}_retrieval_median_rank": float(np.median(found.rank.cpu().numpy())) for side, found in sides.items()}
    return recalls | ranks


DRAWS = 200
"""How often the bootstrap of a median rank draws the queries again."""


def _errors(metrics: dict[str, float], images: Found, texts: Found) -> dict[str, float]:
    """Return the standard errors: binomial over the queries for recalls, by a bootstrap of the queries for median ranks."""
    errors = {}
    for side, found in (("image", images), ("text", texts)):
        for name, value in metrics.items():
            if name.startswith(f"{side}_retrieval_recall"):
                errors[name] = binomial_error(value, len(found.rank))
        errors[f"{side}_retrieval_median_rank"] = median_error(found.rank.cpu().numpy())
    return errors


def median_error(values: np.ndarray) -> float:
    """Return the standard error of the median of values [Q]: the spread of the medians of DRAWS bootstrap samples, seed 0."""
    draw = np.random.default_rng(0)
    return float(np.std([np.median(values[draw.integers(0, len(values), len(values))]) for _ in range(DRAWS)]))


def rerank(text_z: Tensor, short_z: Tensor, long_z: Tensor, known: Answers) -> list[CascadePoint]:
    """Return the image retrieval recalls, without costs, at every K of tradeoffs.shortlists. All ranks must call this.

    text_z: unit rows of the captions [T, D]. short_z, long_z: unit rows of the images [N, D] at the two lengths. known: the
    images that answer each caption.
    """
    short, long = texts_to_images(text_z, short_z), texts_to_images(text_z, long_z)
    sizes = shortlists(known.gallery)
    inner = sizes[1:-1]  # the ends are the two lengths alone
    seen = torch.zeros(len(inner), known.gallery, dtype=torch.uint8, device=text_z.device)  # images in any shortlist, by K

    def search(start: int, stop: int) -> Tensor:
        query, item = known.of(start, stop)
        by_short, by_long = short(start, stop), long(start, stop)
        counted = counts(by_short, query, item)
        hits = [hits_at(*counted)]
        listed = by_short.topk(inner[-1] if inner else 0).indices
        for mark, size in zip(seen, inner, strict=True):
            mark[listed[:, :size].flatten()] = 1
            hits.append(hits_at(*_shortlisted(counted, by_long, listed[:, :size], query, item)))
        return torch.cat([*hits, hits_at(*counts(by_long, query, item))], dim=1)

    rows = over_blocks(search, known.queries, known.gallery, len(KS) * len(sizes), text_z)
    shares = [0.0]
    if inner:
        shares += gather_rows(seen).reshape(-1, *seen.shape).amax(0).double().mean(1).tolist()
    names = [f"image_retrieval_recall@{k}" for k in KS]
    return [
        CascadePoint(size, dict(zip(names, recall, strict=True)), share)
        for size, recall, share in zip(sizes, rows.mean(0).reshape(-1, len(KS)).tolist(), [*shares, 1.0], strict=True)
    ]


def _shortlisted(
    by_short: tuple[Tensor, Tensor, Tensor], by_long: Tensor, listed: Tensor, query: Tensor, item: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what search.counts returns for a cascade: the images in `listed` [Q, K] by the long scores, then all others.

    by_short: the counts for the short scores alone, which hold for the captions without an answer in their shortlist. by_long:
    the long scores [Q, G]. query, item: the answers of these captions, as in search.counts.
    """
    raised = torch.full_like(by_long, -torch.inf).scatter_(1, listed, by_long.gather(1, listed))
    inside = torch.zeros(len(by_long), dtype=torch.bool, device=by_long.device)
    inside[query[torch.isfinite(raised[query, item])]] = True  # queries with an answer in their shortlist
    above, tied, positive = (
        torch.where(inside, new, old) for new, old in zip(counts(raised, query, item), by_short, strict=True)
    )
    return above, tied, positive

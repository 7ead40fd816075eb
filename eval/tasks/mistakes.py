"""What a classification got wrong, for the report: which classes it confuses, and images to look at.

The report shows the whole confusion matrix for up to MATRIX classes. For more classes it lists the most frequent confusions,
because a matrix of a thousand classes cannot be read.
"""

from __future__ import annotations

import torch
from flexiclip_eval.rows import Details, Mistake
from flexiclip_eval.tasks.base import EXAMPLES
from torch import Tensor

MATRIX = 40  # classes whose confusions are all kept, the right answers included
PAIRS = 60  # confusions that are kept if there are more classes


def describe_mistakes(named: Tensor, label: Tensor, rank: Tensor, classes: int) -> Details:
    """Return the confusions and at most EXAMPLES wrong images, which are spread over the data set.

    named: the class that each image got, int64 [N]. label: its own class, int64 [N]. rank: the rank of its own class from 1, [N].
    """
    cells, counts = torch.unique(label * classes + named, return_counts=True)
    pairs = [(cell // classes, cell % classes, count) for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)]
    if classes > MATRIX:
        wrong_pairs = [pair for pair in pairs if pair[0] != pair[1]]
        pairs = sorted(wrong_pairs, key=lambda pair: -pair[2])[:PAIRS]
    wrong = (named != label).nonzero()[:, 0]
    shown = wrong[torch.arange(min(len(wrong), EXAMPLES)) * len(wrong) // max(1, min(len(wrong), EXAMPLES))]
    mistakes = [Mistake(image=i, label=int(label[i]), named=int(named[i]), rank=int(rank[i])) for i in shown.tolist()]
    return {"confusion": pairs, "mistakes": mistakes}

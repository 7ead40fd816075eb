"""Lists the studies of docs/explanation/paper.md, one per file, in the order of the page."""

from __future__ import annotations

from scripts.paper.studies import (
    alternatives,
    analyses,
    curricula,
    distillation,
    flexibility,
    matryoshka,
    resizing,
    scale,
    towers,
    transfer,
)

STUDIES = tuple(
    module.STUDY
    for module in (
        flexibility,
        resizing,
        distillation,
        curricula,
        transfer,
        towers,
        analyses,
        alternatives,
        scale,
        matryoshka,
    )
)

"""The two entries: evaluate_suites for the command line, make_evaluators for the training loop.

Both run every task of a data set on one pass over its images, at every length, sharded over the ranks, and give every rank the
same numbers.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from flexiclip.config import to_dict

from .data.images import ImageBlock
from .embeddings.embed import embed_images, evaluating
from .embeddings.prompts import embed_texts
from .embeddings.ranks import rank_and_world
from .models.protocol import EvalModel, Length, choose_lengths, geometry, model_names, require_text
from .progress import Watch, silent, watch
from .report.table import ModelInfo, Report, Row, TaskInfo
from .suites.dataset import DatasetConfig
from .suites.load import load_datasets
from .tasks.base import Context, Result
from .tasks.registry import TASKS

CACHE_BYTES = 1 << 30  # of decoded images a data set and rank, kept between the evaluations of a training run


@dataclass(frozen=True)
class Score:
    """A task at one length."""

    info: TaskInfo
    length: Length
    result: Result
    n: int
    images_per_s: float | None


def evaluate_suites(
    models: Iterable[tuple[str, EvalModel]],
    suites: Sequence[str],
    *,
    seqhw: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 128,
    output: Path | None = None,
    command: str | None = None,
    workers: int = 2,
) -> list[Row]:
    """Score models on suites (names or files); on rank 0 print a table and, given `output`, write the files of report/.

    models: (what the user called it, the model); the name fills `model` and `pretrained` of the rows. seqhw: lengths, default
    those a model was trained at. command: the line shown in the report, default this process's own. workers: threads that decode.
    """
    from .report.files import print_report, write_report

    datasets = load_datasets(suites)
    main = rank_and_world()[0] == 0
    report = Report(command=command or shlex.join(sys.argv))
    for source, loaded in models:
        require_text(loaded)
        _add_model(report, source, loaded)
        lengths = choose_lengths(loaded, seqhw)
        blocks = [ImageBlock(dataset, loaded.transform, workers=workers, cache_bytes=0) for dataset in datasets]
        for dataset, images in zip(datasets, blocks, strict=True):
            seen = watch(f"{source} · {dataset.name}") if main else silent
            for score in score_tasks(loaded, images, lengths, batch_size, torch.device(device), seen):
                report.add(_row(loaded, source, dataset, score), score.info, score.result.details)
            report.add_bad_samples(images.gather()[1])
    if main:
        print_report(report)
        if output is not None:
            write_report(report, Path(output))
    return report.rows


def make_evaluators(
    suites: Sequence[str],
    *,
    seqhw: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 128,
    workers: int = 2,
) -> Callable[[EvalModel], dict[str, float]]:
    """A callable for the training loop: all ranks call it with the model, and each gets the same numbers.

    Keys: DATASET/TASK/METRIC/seqhw=S. Suites are read now, so that a typo stops a run before its first step; images are decoded
    at the first call and kept, up to CACHE_BYTES a data set, for the next ones: the transform must stay the same.
    """
    datasets = load_datasets(suites)
    blocks: list[ImageBlock] = []

    def evaluate(loaded: EvalModel) -> dict[str, float]:
        if not blocks:
            blocks.extend(ImageBlock(each, loaded.transform, workers=workers, cache_bytes=CACHE_BYTES) for each in datasets)
        lengths = choose_lengths(loaded, seqhw)
        values: dict[str, float] = {}
        for images in blocks:
            for score in score_tasks(loaded, images, lengths, batch_size, torch.device(device)):
                prefix = f"{score.info.dataset}/{score.info.task.removeprefix('zeroshot_')}"
                values |= {f"{prefix}/{name}/seqhw={score.length}": value for name, value in score.result.metrics.items()}
        return values

    return evaluate


def score_tasks(
    loaded: EvalModel,
    images: ImageBlock,
    lengths: Sequence[Length],
    batch_size: int,
    device: torch.device,
    seen: Watch = silent,
) -> Iterator[Score]:
    """The scores of every task and length of one data set, from one pass over its images."""
    with evaluating(loaded.model):
        embeddings, speeds = embed_images(loaded, images, lengths, batch_size=batch_size, device=device, watch=seen)
        records = images.gather()[0]
        texts = partial(embed_texts, loaded, batch_size=batch_size, device=device)
        for task in images.config.tasks:
            prepared = TASKS[task.kind](Context(images.config, task, records, texts))
            for length in lengths:
                yield Score(prepared.info, length, prepared.measure(embeddings[length]), len(records), speeds[length])


def _add_model(report: Report, source: str, loaded: EvalModel) -> None:
    config = to_dict(loaded.config) if loaded.config is not None else {}
    trained = tuple(loaded.config.patch.seqhw) if loaded.config is not None else ()
    report.models.append(ModelInfo(*model_names(loaded, source), config, trained))


def _row(loaded: EvalModel, source: str, dataset: DatasetConfig, score: Score) -> Row:
    model, pretrained = model_names(loaded, source)
    image_size, patch_size, gflops = geometry(loaded, score.length)
    return Row(
        dataset=score.info.dataset,
        model=model,
        pretrained=pretrained,
        task=score.info.task,
        metrics=score.result.metrics,
        language=dataset.language,
        n=score.n,
        seqhw=score.length,
        seq_len=score.length**2 if score.length is not None else None,
        patch_size=patch_size,
        image_size=image_size,
        gflops=gflops,
        images_per_s=score.images_per_s,
    )

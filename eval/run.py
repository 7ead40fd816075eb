"""The two entries: evaluate_suites for the command line, make_evaluators for the training loop.

Both run every task of a data set on one pass over its images, at every length, sharded over the ranks, and give every rank the
same numbers.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flexiclip.config import to_dict

from .data.images import ImageBlock, Record, resolve_labels
from .embeddings.embed import embed_images, evaluating
from .embeddings.prompts import class_embeddings, embed_texts
from .embeddings.ranks import rank_and_world
from .models.protocol import EvalModel, Length, choose_lengths, geometry, model_names, require_text
from .report.table import Report, Row, TaskInfo
from .suite import DatasetConfig, TaskConfig, load_datasets
from .tasks.classification import classification_chance, classification_metrics, largest_class
from .tasks.retrieval import pair_captions, retrieval_chance, retrieval_metrics

CACHE_BYTES = 1 << 30  # of decoded images a data set and rank, kept between the evaluations of a training run


@dataclass(frozen=True)
class _Scores:
    """A task at one length."""

    info: TaskInfo
    length: Length
    metrics: dict[str, float]
    n: int
    images_per_s: float | None


def evaluate_suites(
    loaded: EvalModel,
    suites: Sequence[str],
    *,
    seqhw: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 128,
    output: Path | None = None,
    source: str = "",
    command: str | None = None,
    workers: int = 2,
) -> list[Row]:
    """Score a model on suites (names or files); on rank 0 print a table and, given `output`, write the files of report.py.

    seqhw: lengths, default those the model was trained at. source: what the user called the model; fills `model` and
    `pretrained`. command: the line shown in the report, default this process's own. workers: threads that decode images.
    """
    from .report.files import print_report, write_report

    require_text(loaded)
    lengths = choose_lengths(loaded, seqhw)
    datasets = load_datasets(suites)
    blocks = [ImageBlock(dataset, loaded.transform, workers=workers, cache_bytes=0) for dataset in datasets]
    rows, tasks, bad = [], [], []
    for dataset, images in zip(datasets, blocks, strict=True):
        scores = list(_score(loaded, images, lengths, batch_size, torch.device(device)))
        rows += [_row(loaded, source, dataset, score) for score in scores]
        tasks += list({(score.info.dataset, score.info.task): score.info for score in scores}.values())
        bad += images.gather()[1]
    report = Report(
        rows=rows,
        tasks=tasks,
        bad_samples=bad,
        command=command or shlex.join(sys.argv),
        config=to_dict(loaded.config) if loaded.config is not None else {},
        trained_seqhw=tuple(loaded.config.patch.seqhw) if loaded.config is not None else (),
    )
    if rank_and_world()[0] == 0:
        print_report(report)
        if output is not None:
            write_report(report, Path(output))
    return rows


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
            for score in _score(loaded, images, lengths, batch_size, torch.device(device)):
                prefix = f"{score.info.dataset}/{score.info.task.removeprefix('zeroshot_')}"
                values |= {f"{prefix}/{name}/seqhw={score.length}": value for name, value in score.metrics.items()}
        return values

    return evaluate


def _score(
    loaded: EvalModel, images: ImageBlock, lengths: Sequence[Length], batch_size: int, device: torch.device
) -> Iterator[_Scores]:
    """The scores of every task and length of one data set."""
    with evaluating(loaded.model):
        embeddings, speeds = embed_images(loaded, images, lengths, batch_size=batch_size, device=device)
        records = images.gather()[0]
        for task in images.config.tasks:
            prepare = _retrieval if task.kind == "retrieval" else _classification
            info, measure = prepare(loaded, images.config, task, records, batch_size, device)
            for length in lengths:
                yield _Scores(info, length, measure(embeddings[length]), len(records), speeds[length])


def _retrieval(
    loaded: EvalModel,
    dataset: DatasetConfig,
    task: TaskConfig,
    records: Sequence[Record],
    batch_size: int,
    device: torch.device,
) -> tuple[TaskInfo, Callable[[Tensor], dict[str, float]]]:
    """What the task is, and its metrics as a function of the image embeddings [N, D]."""
    pairs = pair_captions([record.captions for record in records])
    text_z = embed_texts(loaded, pairs.captions, batch_size=batch_size, device=device)
    info = TaskInfo(dataset.row_name(task), "zeroshot_retrieval", retrieval_chance(pairs), captions=len(pairs.captions))
    return info, lambda image_z: retrieval_metrics(image_z, text_z, pairs)


def _classification(
    loaded: EvalModel,
    dataset: DatasetConfig,
    task: TaskConfig,
    records: Sequence[Record],
    batch_size: int,
    device: torch.device,
) -> tuple[TaskInfo, Callable[[Tensor], dict[str, float]]]:
    """What the task is, and its metrics as a function of the image embeddings [N, D]."""
    classes, words, label = resolve_labels(task, records)
    class_z = class_embeddings(loaded, words, task.templates, batch_size=batch_size, device=device)
    chance = classification_chance(len(classes))
    info = TaskInfo(dataset.row_name(task), "zeroshot_classification", chance, tuple(classes), largest_class(label))
    return info, lambda image_z: classification_metrics(image_z, class_z, label)


def _row(loaded: EvalModel, source: str, dataset: DatasetConfig, score: _Scores) -> Row:
    model, pretrained = model_names(loaded, source)
    image_size, patch_size, gflops = geometry(loaded, score.length)
    return Row(
        dataset=score.info.dataset,
        model=model,
        pretrained=pretrained,
        task=score.info.task,
        metrics=score.metrics,
        language=dataset.language,
        n=score.n,
        seqhw=score.length,
        seq_len=score.length**2 if score.length is not None else None,
        patch_size=patch_size,
        image_size=image_size,
        gflops=gflops,
        images_per_s=score.images_per_s,
    )

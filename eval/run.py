"""The two entry points of the harness: evaluate_suites for the command line, make_evaluators for the training loop.

Both score every task of a data set at every length from one pass over its images. The images are sharded over the ranks, and
every rank gets the same numbers.
"""

from __future__ import annotations

import datetime
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from flexiclip_eval.checks import check_widths, outline, require_text
from flexiclip_eval.data.labels import Splits, open_splits
from flexiclip_eval.embeddings.embed import Encoding, evaluating, to_device
from flexiclip_eval.embeddings.store import EmbeddingStore, StoreError
from flexiclip_eval.models.protocol import (
    EvalModel,
    Length,
    Width,
    choose_lengths,
    geometry,
    lengths_among,
    model_names,
    naming,
    trained_lengths,
)
from flexiclip_eval.models.sources import open_model
from flexiclip_eval.report.files import check_output, write_results
from flexiclip_eval.report.page_data import Gallery
from flexiclip_eval.report.table import ModelInfo, Report
from flexiclip_eval.report.terminal import print_report
from flexiclip_eval.rows import Row
from flexiclip_eval.score import Score, score_tasks
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import printable, repeated
from flexiclip_eval.suites.load import load_datasets, load_readable
from flexiclip_eval.tradeoffs import TOLERANCE, Budget, CascadeCurve, cascade_pair, check_tolerance, choose, fronts, priced

import flexiclip
from flexiclip.config import to_dict
from flexiclip.distributed import gather_objects, rank
from flexiclip.errors import UserError
from flexiclip.model_source import split_label

log = logging.getLogger("flexiclip.eval")

CACHE_BYTES = 1 << 30  # decoded images kept per split and rank between the evaluations of a training run


@dataclass(frozen=True)
class EvalOptions:
    """How evaluate_suites scores models, and which rules it applies to their scores."""

    device: str | torch.device = "cpu"
    batch_size: int = 128
    """Images or texts encoded at once per rank."""
    workers: int = 2
    """Threads per rank that decode images."""
    embeddings: Path | None = None
    """A folder that keeps the embeddings; the next evaluation of the same model on the same images reads them."""
    widths: Sequence[int] = ()
    """Also score the first N columns of the embeddings, for each N, as if these were further models, without cascades."""
    cascade: tuple[int, int] | None = None
    """The short and the long length of the cascade (tradeoffs.py); default: the shortest and the longest."""
    tolerance: float = TOLERANCE
    """Choose the shortest length that is within this many percentage points of the best (tradeoffs.py)."""
    budget: Budget | None = None
    """Also choose the best length that keeps to this budget (tradeoffs.py)."""
    command: str | None = None
    """The command line that the report shows; default: that of this process."""
    tables: Sequence[str] = ()
    """Also write the tables: files that end in .md (Markdown) or .tex (LaTeX), or `markdown` or `latex` in the output folder."""


DEFAULTS = EvalOptions()


def evaluate_suites(
    models: Sequence[str | tuple[str, EvalModel]],
    suites: Sequence[str],
    *,
    seqhw: Sequence[int] | None = None,
    output: Path | None = None,
    options: EvalOptions = DEFAULTS,
) -> list[Row]:
    """Score models on suites and return the rows of all models; every rank gets the same rows.

    Every rank must call this. Rank 0 prints a table and, if `output` is given, writes the files that report/files.py lists.

    - `models`: sources as `flexiclip eval` takes them, or pairs of a name and an opened model. The name fills `model` and
      `pretrained` of the rows. Either may begin with LABEL=, which names the model in tables and plots. All models are judged by
      their names and configs before the first one is scored. A source is opened when its turn comes, and released before the
      next one.
    - `suites`: names of suites, YAML files, or places of single data sets (see `load_suite`).
    - `seqhw`: the lengths to score; default: those that each model was made for. Next to other models, a model with a single
      length keeps that length.
    - `output`: the folder of the report.
    - `options`: the device, the batch size and everything else (see `EvalOptions`).

    If a data set cannot be read, the others are still scored, shown and written; then a UserError names the data set.
    """
    candidates = _candidates(models)
    check_tolerance(options.tolerance)
    if seqhw and options.cascade:
        cascade_pair(seqhw, options.cascade)
    command = printable(options.command or shlex.join(sys.argv))
    report, gallery = Report(command, date=str(datetime.date.today()), version=flexiclip.__version__), Gallery()
    datasets = _readable(suites, report)
    main = rank() == 0
    if main:  # before the work, which may take hours
        check_output(output, options.tables)
    plan = _Plan(datasets, seqhw, len(models) > 1, options)
    for candidate in candidates:
        _judge(candidate, plan)
    try:
        for candidate in candidates:
            _score_model(candidate, plan, report, gallery)
    finally:  # if a model fails, the results of the earlier models are still shown and written
        report.choices = choose(report.rows, tolerance=options.tolerance, budget=options.budget, hits=report.hits)
        report.fronts = fronts(report.rows)
        if main and report.rows:
            print_report(report)
            for line in write_results(report, output, gallery, options.tables):
                print(printable(line))
    if report.unscored:
        every = "; ".join(f"{name}: {reason}" for name, reason in report.unscored.items())
        count = len({*report.unscored, *(dataset.name for dataset in datasets)})
        raise UserError(f"{len(report.unscored)} of {count} data sets could not be scored as a whole: {every}")
    return report.rows


@dataclass(frozen=True)
class _Candidate:
    """A model that is to be scored: the name that the user gave it, its source, and the model if it is open already."""

    label: str | None
    source: str
    loaded: EvalModel | None = None


def _candidates(models: Sequence[str | tuple[str, EvalModel]]) -> list[_Candidate]:
    """Return the models with their labels. Raises UserError if two models or two labels are the same."""
    found = []
    for model in models:
        name, loaded = model if isinstance(model, tuple) else (model, None)
        label, source = split_label(name)
        found.append(_Candidate(label, source, loaded))
    if twice := repeated(each.source.rstrip("/") for each in found):
        raise UserError(f"the model {twice[0]} is named twice: its rows could not be told apart; name it once")
    if twice := repeated(each.label for each in found if each.label is not None):
        raise UserError(f"two models have the label {twice[0]}: their rows could not be told apart; rename one")
    return found


def _judge(candidate: _Candidate, plan: _Plan) -> None:
    """Raise UserError, which names the model, for every mistake that its name and config show."""
    source = candidate.source
    loaded = candidate.loaded or outline(source)
    if loaded is None:
        return
    require_text(loaded, source, plan.datasets)
    lengths = lengths_among(loaded, source, plan.seqhw, plan.several)
    check_widths(loaded, source, plan.options.widths, None)
    if len(lengths) > 1:
        with naming(source):
            cascade_pair(lengths, plan.options.cascade)


def _readable(suites: Sequence[str], report: Report) -> list[DatasetConfig]:
    """Return the data sets that every rank can read, and report the others. Raises UserError if none can be read."""
    datasets, failed = load_readable(suites)
    reasons: dict[str, str] = {}
    for part in gather_objects({name: str(error) for name, error in failed.items()}):
        reasons |= part
    datasets = [dataset for dataset in datasets if dataset.name not in reasons]
    if not datasets:
        raise UserError(next(iter(reasons.values())))
    for name, reason in reasons.items():
        _leave_out(name, reason, report)
    return datasets


def _leave_out(name: str, reason: str, report: Report) -> None:
    """Log that a data set is left out, and put it into the report, which names it again at the end."""
    if name not in report.unscored and rank() == 0:
        log.error("data set %s is left out, the others are scored: %s", name, reason)
    report.unscored.setdefault(name, reason)


@dataclass(frozen=True)
class _Plan:
    """What evaluate_suites does with every model."""

    datasets: list[DatasetConfig]
    seqhw: Sequence[int] | None
    several: bool  # whether there are several models
    options: EvalOptions


def _score_model(candidate: _Candidate, plan: _Plan, report: Report, gallery: Gallery) -> None:
    """Add the rows of one model to the report. A model that is opened here is released at the end, so two are never in memory."""
    options, device, source = plan.options, torch.device(plan.options.device), candidate.source
    loaded = candidate.loaded or open_model(source, str(device))
    require_text(loaded, source, plan.datasets)
    lengths = lengths_among(loaded, source, plan.seqhw, plan.several)
    widths = _widths(loaded, source, options, lengths[0])
    name, pretrained = map(printable, model_names(loaded, source))
    label = None if candidate.label is None else printable(candidate.label)
    config = to_dict(loaded.config) if loaded.config is not None else {}
    report.models += [ModelInfo(name, pretrained, config, trained_lengths(loaded), width, label) for width in widths]
    pair = cascade_pair(lengths, options.cascade) if len(lengths) > 1 and not options.widths else None
    opened = [_open(dataset, loaded, options.workers) for dataset in plan.datasets]
    store = None if options.embeddings is None else EmbeddingStore(options.embeddings, loaded)
    failed = []
    for dataset, splits in zip(plan.datasets, opened, strict=True):
        title = f"{candidate.label or source} · {dataset.name}"
        encoding = Encoding(loaded, lengths, options.batch_size, device, store, title if rank() == 0 else None)
        try:
            if isinstance(splits, UserError):
                raise splits
            for score in score_tasks(encoding, splits, pair, widths):
                row = _row(loaded, report.models[-1], dataset.language, score)
                report.add(row, score.info, score.result.details, score.result.hits)
                if pair and score.cascade:
                    short, long = (geometry(loaded, length).gflops for length in pair)
                    points = priced(score.cascade, score.n, short, long)
                    report.cascades.append(CascadeCurve(row.dataset, row.task, name, pretrained, *pair, points, label))
            report.add_bad_samples(splits.bad_samples())
            gallery.add(map(dataset.row_name, dataset.tasks), dataset, splits.images.gather()[0])
        except StoreError:
            raise
        except UserError as error:
            failed.append(error)
            if len(failed) == len(plan.datasets):
                raise failed[0] from None
            _leave_out(dataset.name, str(error), report)


def _row(loaded: EvalModel, model: ModelInfo, language: str, score: Score) -> Row:
    return Row(
        dataset=score.info.dataset,
        model=model.model,
        pretrained=model.pretrained,
        task=score.info.task,
        metrics=score.result.metrics,
        language=language,
        n=score.n,
        seqhw=score.length,
        seq_len=score.length**2 if score.length is not None else None,
        images_per_s=score.images_per_s,
        width=score.width,
        standard_errors=score.result.errors or None,
        label=model.label,
        **asdict(geometry(loaded, score.length)),
    )


def _open(dataset: DatasetConfig, loaded: EvalModel, workers: int) -> Splits | UserError:
    """Return the splits of a data set, or the error if any rank cannot open it."""
    found: Splits | UserError
    try:
        found = open_splits(dataset, loaded.transform, workers=workers, cache_bytes=0)
    except UserError as error:
        found = error
    wrong = [text for text in gather_objects(str(found) if isinstance(found, UserError) else None) if text is not None]
    return UserError(wrong[0]) if wrong else found


def _widths(loaded: EvalModel, source: str, options: EvalOptions, length: Length) -> list[Width]:
    """Return the widths asked for and the width of the whole embeddings; [None] if no widths are asked for.

    The whole width is measured on an embedding, because a model of another library states it nowhere else. Raises UserError as
    `check_widths` does.
    """
    if not options.widths:
        return [None]
    check_widths(loaded, source, options.widths, None)
    with evaluating(loaded.model), torch.no_grad():
        blank = to_device(loaded, torch.empty(0), torch.device(options.device))
        whole = loaded.model.encode_image(blank, seqhw=length).shape[1]
    check_widths(loaded, source, options.widths, whole)
    return [*sorted({*options.widths, whole})]


def make_evaluators(
    suites: Sequence[str],
    *,
    seqhw: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 128,
    workers: int = 2,
) -> Callable[[EvalModel], dict[str, float]]:
    """Return a function for the training loop that scores a model on suites: {"DATASET/TASK/METRIC/seqhw=S": value}.

    All ranks call the function with the model, and all get the same numbers. The arguments are those of `evaluate_suites`.

    The suites are read at once, so that a typo stops a run before its first step. The images are decoded at the first call and
    kept for later calls, up to 1 GiB per split and rank. For this reason the model's transform must stay the same.
    """
    datasets = load_datasets(suites)
    opened: list[Splits] = []

    def evaluate(loaded: EvalModel) -> dict[str, float]:
        if not opened:
            opened.extend(open_splits(each, loaded.transform, workers=workers, cache_bytes=CACHE_BYTES) for each in datasets)
        lengths = choose_lengths(loaded, seqhw)
        values: dict[str, float] = {}
        for splits in opened:
            for score in score_tasks(Encoding(loaded, lengths, batch_size, torch.device(device)), splits):
                prefix = f"{score.info.dataset}/{score.info.task.removeprefix('zeroshot_')}"
                values |= {f"{prefix}/{name}/seqhw={score.length}": value for name, value in score.result.metrics.items()}
        return values

    return evaluate

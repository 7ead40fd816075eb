"""Draws several evaluations in one picture, for example a flexible model and a model that was trained at a single length.

    python -m flexiclip_eval.report.compare flexible=runs/flexible/eval "fixed at seqhw 6=runs/fixed/eval" \
        --metric image_retrieval_recall@5 --output flexible_vs_fixed.png

The chance level and the training length of a fixed model come from the report.json next to each results.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flexiclip_eval.report.drawing import drawn
from flexiclip_eval.report.files import read_about, read_rows, require_folder, write_whole
from flexiclip_eval.report.plots import plot_runs
from flexiclip_eval.rows import Row
from flexiclip_eval.suites.layout import printable

from flexiclip.errors import UserError


def compare(runs: dict[str, Path], metric: str, output: Path, dataset: str | None = None) -> None:
    """Draw `metric` of every run against the sequence length, and write the picture to `output`.

    runs: {label: results.json or its folder}. dataset: needed if several data sets have the metric. Raises UserError if the rows
    cannot be compared or the picture cannot be written.
    """
    chosen = {label: _choose(read_rows(path), metric, dataset, path) for label, path in runs.items()}
    datasets = sorted({row.dataset for rows in chosen.values() for row in rows})
    if len(datasets) > 1:
        raise UserError(f"the runs have several data sets with {metric}: choose one with --dataset, of {', '.join(datasets)}")
    counts = {label: rows[0].n for label, rows in chosen.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"the runs were scored on different numbers of images ({counts}): evaluate them on the same shards")
    about = {label: read_about(path) for label, path in runs.items()}
    chances = [task.chance.get(metric) for _, tasks in about.values() for task in tasks if task.dataset == datasets[0]]
    chance = next((chance for chance in chances if chance is not None), None)
    trained = {label: models[0].trained_seqhw for label, (models, _) in about.items() if models}
    own = {label: lengths for label, lengths in trained.items() if len(lengths) == 1}
    figure = plot_runs(chosen, metric, chance=chance, own=own)
    kind = output.suffix[1:].lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise UserError(f"--output {output}: cannot write a .{kind} picture; give one of {', '.join(sorted(known))}")
    require_folder(output.parent, f"--output {output}")
    write_whole(output, drawn(figure, kind))


def _choose(rows: Sequence[Row], metric: str, dataset: str | None, path: Path) -> list[Row]:
    """Return the rows with the metric, in the order of their lengths. dataset: only its rows. Raises UserError for no rows."""
    chosen = [row for row in rows if metric in row.metrics and dataset in (None, row.dataset) and row.seq_len is not None]
    if not chosen:
        names = sorted({f"{row.dataset} {name}" for row in rows for name in row.metrics})
        wanted = f"{dataset} {metric}" if dataset else metric
        raise UserError(f"{path}: no row with a length has {wanted}; choose one of {', '.join(names)}")
    return sorted(chosen, key=lambda row: row.seq_len or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (default: those of the process), and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flexiclip_eval.report.compare", description="Draw several evaluations in one picture."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="LABEL=RESULTS", help="a label, and a results.json or the folder that holds it"
    )
    parser.add_argument("--metric", default="image_retrieval_recall@5", help="metric to draw; default: %(default)s")
    parser.add_argument("--dataset", help="data set to draw; needed if several of them have the metric")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write: .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    try:
        runs = {}
        for run in options.runs:
            label, equals, path = run.partition("=")
            if not equals or not label or label in runs:
                raise UserError(f"{run!r}: write LABEL=RESULTS, each label once")
            runs[label] = Path(path)
        compare(runs, options.metric, options.output, options.dataset)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(printable(str(options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

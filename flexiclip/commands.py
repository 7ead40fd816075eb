"""What the command line does, as functions for a script or a notebook.

    run = flexiclip.train("openmoji_flexilit", {"train.steps": 60, "run_dir": "runs/first"})
    run.metrics[-1]["loss"], run.load().model
    scores = flexiclip.evaluate(run.folder, "openmoji", seqhw=[3, 6])      # a table in a notebook
    flexiclip.export_onnx(run.folder, "encoders", seqhw=[3, 6]).files

cli/ reads arguments and calls these functions. Everything heavy is imported when it is used, so this module is light.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from flexiclip.config import Config, load
from flexiclip.errors import UserError
from flexiclip.model_source import OPEN_CLIP, Accepted, Kind, parse_model

if TYPE_CHECKING:
    from flexiclip_eval import EvalOptions, Row

    from flexiclip.export.card import Exported
    from flexiclip.model_folder import LoadedModel
    from flexiclip.train.banner import MemoryEstimate
    from flexiclip.train.ranks import Ranks

    Scored = str | PathLike[str] | LoadedModel

Name = str | PathLike[str]
Overrides = Sequence[str] | Mapping[str, Any]
"""`key=value` texts as on the command line, or {key: value}."""

_EXPORTED = Accepted((Kind.MODEL, Kind.OPEN_CLIP), exits=True)


def load_recipe(recipe: Name, overrides: Overrides = ()) -> Config:
    """Return the checked Config of a recipe, a file or an installed name, with overrides of its keys.

    The model that `init` names is opened, and fills in what the recipe does not say. Raises UserError.
    """

    def settings_of(model: str) -> dict[str, Any]:
        from flexiclip.formats.initial import settings_of

        return settings_of(model)

    return load(recipe, _texts(overrides), settings_of)


def _texts(overrides: Overrides) -> list[str]:
    """Return overrides as `key=value` texts. JSON is YAML, so a value reads back as it is."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={json.dumps(value, default=fspath)}" for key, value in overrides.items()]


@dataclass(frozen=True)
class TrainedRun:
    """A run that `train` has left: complete, or stopped by a signal so that the same call goes on from there."""

    folder: Path
    complete: bool
    config: Config

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        from flexiclip.train.logs import read_lines

        return read_lines(self.folder / "metrics.jsonl")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of eval.jsonl: step, and each metric by its name. Empty without `eval.suites`."""
        from flexiclip.train.logs import read_lines

        return read_lines(self.folder / "eval.jsonl")

    def load(self, device: str = "cpu") -> LoadedModel:
        """Load the trained model, as flexiclip.load_model does."""
        from flexiclip.model_folder import load_model

        return load_model(self.folder, device)

    def _repr_html_(self) -> str:
        """Show the last rows of the metrics as a table in a notebook."""
        rows = self.metrics[-5:]
        columns = [name for name in ("step", "loss", "seqhw", "lr", "images_per_s") if rows and name in rows[-1]]
        shown = [[f"{row[name]:.4g}" if row.get(name) is not None else "–" for name in columns] for row in rows]
        state = "complete" if self.complete else "stopped"
        return f"<p>{escape(str(self.folder))}: {state}</p>{_html_table(columns, shown)}"


def train(recipe: Name, overrides: Overrides = ()) -> TrainedRun:
    """Train a recipe as `flexiclip train` does, to its end or until a signal. Under a launcher, every rank calls this.

    Raises UserError for a mistake, and RunError if the run cannot go on.
    """
    from flexiclip.formats.initial import open_initial
    from flexiclip.train.trainer import train as run

    config = load_recipe(recipe, overrides)
    evaluators = None
    if config.eval.suites:
        from flexiclip_eval import make_evaluators

        section, device = config.eval, device_of(None)
        evaluators = make_evaluators(section.suites, seqhw=section.seqhw, device=device, batch_size=section.batch_size)
    complete = run(config, evaluators, open_model=open_initial, estimate=estimate_memory)
    return TrainedRun(Path(config.run_dir), complete, config)


def estimate_memory(config: Config, ranks: Ranks, samples: int | None) -> MemoryEstimate:
    """Estimate the peak memory of a rank by the formulas of `flexiclip plan`, next to what its GPU or its share of the host has.

    Raises UserError for a recipe that these formulas do not know.
    """
    import os

    import torch

    from flexiclip.plan.hardware import machine_memory
    from flexiclip.plan.plan import peak_memory
    from flexiclip.train.banner import MemoryEstimate

    needed = peak_memory(config, ranks.world, samples).peak
    if ranks.device.type == "cuda":
        return MemoryEstimate(needed, torch.cuda.get_device_properties(ranks.device).total_memory)
    return MemoryEstimate(needed, machine_memory() / int(os.environ.get("LOCAL_WORLD_SIZE") or ranks.world))


@dataclass(frozen=True)
class Evaluation:
    """The scores of one or several models: a row for each data set, model and length."""

    rows: list[Row]
    output: Path | None

    @property
    def report(self) -> Path | None:
        """The page with plots, pictures and choices, if `output` was given."""
        return None if self.output is None else self.output / "report.html"

    def table(self) -> list[dict[str, Any]]:
        """Return the rows as flat dicts, for example for pandas.DataFrame: names and costs first, then the metrics."""
        facts = ("dataset", "task", "model", "pretrained", "seqhw", "width", "gflops", "n")
        return [{name: getattr(row, name) for name in facts} | dict(row.metrics) for row in self.rows]

    def _repr_html_(self) -> str:
        """Show a table for each task in a notebook."""
        from flexiclip_eval.rows import short_name, show

        pieces = []
        for dataset, task in dict.fromkeys((row.dataset, row.task) for row in self.rows):
            rows = [row for row in self.rows if (row.dataset, row.task) == (dataset, task)]
            metrics = list(rows[0].metrics)
            cells = [
                [f"{row.model} {row.pretrained}", str(row.seqhw), *(show(name, row.metrics.get(name)) for name in metrics)]
                for row in rows
            ]
            table = _html_table(["model", "seqhw", *map(short_name, metrics)], cells)
            pieces.append(f"<p>{escape(f'{dataset} · {task} · {rows[0].n} images')}</p>{table}")
        return "".join(pieces)


def evaluate(
    models: Scored | Sequence[Scored],
    suites: str | Sequence[str],
    *,
    seqhw: Sequence[int] | None = None,
    output: Name | None = None,
    options: EvalOptions | None = None,
) -> Evaluation:
    """Score models on suites at every length, as `flexiclip eval` does. The tables are returned, and not printed.

    - `models`: one or several, each as `flexiclip eval` takes it, or a LoadedModel.
    - `suites`: one or several names, YAML files, folders or URLs.
    - `seqhw`: the lengths; default: those that each model was trained at.
    - `output`: the folder for results.csv, plots and report.html; default: nothing is written.
    - `options`: the device, the batch size and the rest; the default device is that of a LoadedModel, else a GPU if there is
      one.

    Raises UserError.
    """
    from flexiclip.model_folder import LoadedModel

    every: list[Scored] = [models] if isinstance(models, (str, PathLike, LoadedModel)) else list(models)
    named: list[str | tuple[str, Any]] = [
        (f"model {number}", each) if isinstance(each, LoadedModel) else fspath(each) for number, each in enumerate(every, 1)
    ]
    loaded = [each for each in every if isinstance(each, LoadedModel)]
    if options is None and loaded:
        import flexiclip_eval

        options = flexiclip_eval.EvalOptions(device=loaded[0].model.logit_scale.device)
    with contextlib.redirect_stdout(io.StringIO()):
        return score(named, [suites] if isinstance(suites, str) else list(suites), seqhw, output, options)


def score(
    models: Sequence[str | tuple[str, Any]],
    suites: Sequence[str],
    seqhw: Sequence[int] | None,
    output: Name | None,
    options: EvalOptions | None,
) -> Evaluation:
    """Score models on suites, and print the tables. Under a launcher, every rank calls this. Raises UserError."""
    import flexiclip_eval

    from flexiclip.train.ranks import joined_ranks

    folder = None if output is None else Path(output)
    with joined_ranks(process_group=False):
        options = options or flexiclip_eval.EvalOptions(device=device_of(None))
        rows = flexiclip_eval.evaluate_suites(models, suites, seqhw=seqhw, output=folder, options=options)
    return Evaluation(rows, folder)


def export_onnx(
    model: Name,
    output: Name,
    *,
    seqhw: Sequence[int] = (),
    quantize: str | None = None,
    normalize_inside: bool = False,
    images: str | None = None,
) -> Exported:
    """Write the encoders of a model as ONNX files into a folder, compare each with the model, and return what was written.

    There is an image encoder for each length of `seqhw` (default: the model's own) and, if the model has a text tower, a text
    encoder with the files of its tokenizer. The other arguments are options of `flexiclip export image`. Raises UserError, and
    Disagreement if a file does not compute what the model computes.
    """
    from flexiclip.export.card import Exported
    from flexiclip.export.write_encoder import EncoderOptions, export_image, export_text
    from flexiclip.model_folder import read_config

    Path(output).mkdir(parents=True, exist_ok=True)
    with folder_to_export(fspath(model)) as folder:
        options = EncoderOptions("onnx", list(seqhw), quantize, normalize_inside, images)
        written = [export_image(folder, Path(output), options)]
        if read_config(parse_model(folder, _EXPORTED).path)[0].model.text is not None:
            written.append(export_text(folder, Path(output), EncoderOptions("onnx", quantize=quantize)))
    files, lines = (tuple(item for each in written for item in getattr(each, name)) for name in ("files", "lines"))
    return Exported(files, lines)


@contextlib.contextmanager
def folder_to_export(model: str) -> Iterator[str]:
    """Yield the name of a model folder: `model`, or for open_clip a folder that exists as long as the context."""
    source = parse_model(model, _EXPORTED)
    if source.kind is Kind.MODEL:
        yield model
        return
    from flexiclip.formats.run import import_weights

    with TemporaryDirectory() as folder:
        name = Path(source.name).name
        imported = Path(folder) / (f"{name}-{Path(source.pretrained).stem}" if source.pretrained else name)
        import_weights(model.removeprefix(OPEN_CLIP), "open_clip", imported)
        yield str(imported)


def device_of(name: str | None) -> str:
    """Return the device of that name, by default a GPU if there is one. Raises UserError if torch cannot use it."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU; leave the option out or give cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown name or number, or a torch that was built without this device
        raise UserError(f"--device {name}: torch has none such ({str(error).splitlines()[0]}); give cpu or cuda") from None
    return name


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML."""
    lines = [("th", columns), *(("td", row) for row in rows)]
    return f"<table>{''.join(_html_row(tag, cells) for tag, cells in lines)}</table>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

"""The entry point of `flexiclip analyze`: opens the model, draws the sample, runs the analyses, and writes after each one.

The folder OUTPUT gets these files:

    OUTPUT/analysis.json   command, model, lengths, and the numbers of each analysis by its name
    OUTPUT/*.png           the pictures of the analyses
    OUTPUT/report.html     all of it on one page that loads nothing
"""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flexiclip_eval.analysis import attention, cka, cue_conflict, ensembles, tokens
from flexiclip_eval.analysis.figures import render_findings
from flexiclip_eval.analysis.subject import Finding, Subject, draw_sample, subject_lengths
from flexiclip_eval.embeddings.embed import evaluating
from flexiclip_eval.models.protocol import geometry, model_names
from flexiclip_eval.models.sources import ANALYZED, open_model
from flexiclip_eval.report.files import check_folder, require_folder, write_whole
from flexiclip_eval.report.plots import drawn
from flexiclip_eval.suites.layout import printable
from flexiclip_eval.suites.load import load_datasets

from flexiclip.errors import UserError

ANALYSES: dict[str, Callable[[Subject], Finding]] = {
    "cka": cka.analyse,
    "attention": attention.analyse,
    "tokens": tokens.analyse,
    "ensembles": ensembles.analyse,
    "cue-conflict": cue_conflict.analyse,
}
DPI = 120


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of `flexiclip analyze`. images: size of the sample. maps: images with maps. batch_size: also CKA's minibatch."""

    seqhw: Sequence[int] | None = None
    only: Sequence[str] | None = None
    cue_conflict: Path | None = None
    images: int = 256
    maps: int = 6
    batch_size: int = 64
    workers: int = 2
    device: str = "cpu"


def analyze(
    model: str, suites: Sequence[str], output: Path, options: AnalysisOptions, command: str | None = None
) -> dict[str, Finding]:
    """Run the analyses on a model, print one sentence for each, and write `output`. Raises UserError.

    model, suites: as for `flexiclip eval`. command: the line shown in the report; default: that of this process.
    """
    names = chosen(options)
    check_folder(output, f"--output {output}")  # before the work, which may take hours
    datasets = load_datasets(suites)
    loaded = open_model(model, options.device, ANALYZED)
    lengths = subject_lengths(loaded, model, options.seqhw)
    sample = draw_sample(datasets, loaded.transform, options.images, workers=options.workers)
    subject = Subject(
        loaded, lengths, tuple(datasets), sample, torch.device(options.device), options.batch_size, options.workers,
        min(options.maps, len(sample.images)), options.cue_conflict,
    )  # fmt: skip
    about = _about(subject, model, suites, printable(command or shlex.join(sys.argv)))
    found: dict[str, Finding] = {}
    pictures: dict[str, Path] = {}
    require_folder(output, f"--output {output}")
    with evaluating(loaded.model):
        for name in names:
            found[name] = ANALYSES[name](subject)
            print(f"{found[name].title}: {found[name].sentence}", flush=True)
            for file, figure in found[name].figures.items():
                pictures[file] = output / f"{file}.png"
                write_whole(pictures[file], drawn(figure, dpi=DPI))
            write_findings(found, about, pictures, output)
    return found


def chosen(options: AnalysisOptions) -> list[str]:
    """Return the analyses to run, in the order of ANALYSES.

    Without --only these are all, cue-conflict only if there is a folder for it. Raises UserError for an unknown name.
    """
    if options.images < 1 or options.maps < 1:
        raise UserError(f"--images {options.images}, --maps {options.maps}: give at least one")
    if options.only is None:
        return [name for name in ANALYSES if name != "cue-conflict" or options.cue_conflict is not None]
    for name in options.only:
        if name not in ANALYSES:
            near = difflib.get_close_matches(name, ANALYSES, n=1, cutoff=0.5)
            mend = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--only {name}: {mend}the analyses are {', '.join(ANALYSES)}")
    if "cue-conflict" in options.only and options.cue_conflict is None:
        raise UserError(f"--only cue-conflict: {cue_conflict.MEND}")
    return [name for name in ANALYSES if name in options.only]


def write_findings(found: dict[str, Finding], about: dict[str, Any], pictures: dict[str, Path], output: Path) -> None:
    """Write analysis.json and report.html with the findings so far. pictures: PNG files by the names of the findings' figures."""
    numbers = {name: {"sentence": each.sentence, **each.numbers} for name, each in found.items()}
    write_whole(
        output / "analysis.json", json.dumps({**about, "analyses": numbers}, indent=1, ensure_ascii=False, allow_nan=False)
    )
    write_whole(output / "report.html", render_findings(list(found.values()), about, pictures))


def _about(subject: Subject, source: str, suites: Sequence[str], command: str) -> dict[str, Any]:
    name, pretrained = map(printable, model_names(subject.loaded, source))
    costs = [(length, geometry(subject.loaded, length)) for length in subject.lengths]
    return {
        "command": command,
        "model": name,
        "pretrained": pretrained,
        "suites": list(map(printable, suites)),
        "images": len(subject.sample.images),
        "lengths": [{"seqhw": n, "seq_len": n * n, "patch_size": there.patch_size, "gflops": there.gflops} for n, there in costs],
        "bad_samples": subject.sample.bad,
    }

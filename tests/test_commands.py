"""What a notebook calls: a run, its scores and its exports as objects, with the numbers of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from kit.train_shards import sample, write_shard

import flexiclip
from flexiclip.__main__ import main
from flexiclip.commands import Evaluation, TrainedRun, estimate_memory
from flexiclip.errors import UserError
from flexiclip.plan.hardware import machine_memory
from flexiclip.plan.plan import Cluster, make_plan
from flexiclip.train.ranks import Ranks

SUITE = """
datasets:
  - name: toy
    shards: train.tar
    tasks: [{kind: retrieval}, {kind: classification, label: cls, classes: [red, green, blue, yellow, grey]}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a shard and a suite. What a run leaves in the process is undone."""
    folder = tmp_path_factory.mktemp("notebook")
    write_shard(folder / "train.tar", [sample(number) for number in range(24)])
    (folder / "toy.yaml").write_text(SUITE)
    environment, threads = dict(os.environ), torch.get_num_threads()
    yield folder
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(place: Path) -> TrainedRun:
    """Trained by keys and values, not by texts."""
    settings = {"train.steps": 6, "train.global_batch_size": 8, "data.workers": 0, "optimizer.warmup": "50%"}
    return flexiclip.train(
        "debug",
        {
            **settings,
            "data.train": place / "train.tar",
            "run_dir": place / "run",
            "patch.seqhw": [2, 4],
            "tokenizer.vocab_size": 60,
            "eval.suites": [str(place / "toy.yaml")],
            "model.text.context_length": None,
        },
    )


def test_train_returns_the_run(run: TrainedRun, place: Path) -> None:
    assert (run.complete, run.folder) == (True, place / "run")
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4, 5, 6]
    (scores,) = run.evaluations
    assert scores["step"] == 6
    assert "toy/retrieval/image_retrieval_recall@5/seqhw=2" in scores
    assert run.load().config.trained_seqhw == (2, 4)
    assert run.config.train.steps.value == 6
    page = run._repr_html_()
    assert page.count("<tr>") == 6
    assert f"<td>{run.metrics[-1]['loss']:.4g}</td>" in page
    again = flexiclip.train(str(run.folder / "config.yaml"))
    assert again.metrics == run.metrics, "complete"
    with pytest.raises(UserError, match=r"unknown key 'train\.stepps'"):
        flexiclip.train("debug", {"train.stepps": 3})


def test_the_command_line_trains_the_same_numbers(run: TrainedRun, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And its first lines say what is trained."""
    texts = [f"data.train={place / 'train.tar'}", f"run_dir={place / 'other'}", "train.steps=6", "train.global_batch_size=8"]
    sizes = ["data.workers=0", "optimizer.warmup=50%", "patch.seqhw=[2,4]", "tokenizer.vocab_size=60"]
    assert main(["train", "debug", *texts, *sizes]) == 0
    other = TrainedRun(place / "other", True, run.config).metrics
    kept = ("step", "loss", "seqhw", "lr", "grad_norm", "logit_scale", "samples", "tflops")
    assert [[row[name] for name in kept] for row in other] == [[row[name] for name in kept] for row in run.metrics]
    lines = capsys.readouterr().err.splitlines()
    parameters = sum(p.numel() for p in run.load().model.parameters())
    start = lines.index(f"model    {parameters / 1e6:,.1f} M parameters, {parameters / 1e6:,.1f} M of them train")
    data, steps, device, memory, folder, curves, first = lines[start + 1 : start + 8]
    assert (data, steps, device) == ("data     24 samples, 2 epochs", "run      6 steps of 8 samples", "device   cpu, fp32")
    assert memory.startswith("memory   ")
    assert " estimated for each rank, of " in memory
    assert (folder, curves) == (f"folder   {place / 'other'}", f"curves   tensorboard --logdir {place / 'other'}")
    assert first.startswith("step 1/6  loss ")


def test_probable_mistakes_get_a_line(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up that came along with a base, and a machine that is too small."""
    from flexiclip.plan import hardware

    monkeypatch.setattr(hardware, "machine_memory", lambda: 1000)
    small = [f"data.train={place / 'train.tar'}", f"run_dir={place / 'warm'}", "data.workers=0", "tokenizer.vocab_size=60"]
    assert main(["train", "debug", *small, "train.steps=2", "optimizer.warmup=2000", "optimizer.lr=1e-3"]) == 0
    said = capsys.readouterr().err
    wanted = (
        "optimizer.warmup=2000 is not shorter than the run of 2 steps: the learning rate reaches 5.0e-07 of optimizer.lr=1.0e-03"
    )
    assert f"{wanted}; set optimizer.warmup=5%\n" in said
    assert "the estimated memory is more than there is: the run may be killed; `flexiclip plan` names" in said
    assert main(["train", "debug", *small, "train.steps=2", "optimizer.warmup=2000", "optimizer.lr=1e-3"]) == 0
    assert "is complete at step 2: nothing to train; a larger train.steps makes it longer\n" in capsys.readouterr().err


def test_the_estimate_is_that_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = flexiclip.load_recipe("debug", ["tokenizer.vocab_size=60"])
    plan = make_plan(config, Cluster(1, 2, "cpu"))
    found = estimate_memory(config, Ranks(0, 2, 0, torch.device("cpu")), None)
    assert found.needed == max(length.memory.peak for length in plan.lengths)
    assert found.available == machine_memory() / 2


def test_evaluate_returns_rows_and_prints_nothing(run: TrainedRun, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    scores = flexiclip.evaluate(run.folder, str(place / "toy.yaml"), seqhw=[2, 4], output=place / "eval")
    assert capsys.readouterr().out == ""
    assert isinstance(scores, Evaluation)
    assert [(row.task, row.seqhw) for row in scores.rows] == [
        *(("zeroshot_retrieval", seqhw) for seqhw in (2, 4)),
        *(("zeroshot_classification", seqhw) for seqhw in (2, 4)),
    ]
    assert scores.report == place / "eval" / "report.html"
    assert scores.report.is_file()
    table = scores.table()
    assert table[0]["image_retrieval_recall@5"] == run.evaluations[0]["toy/retrieval/image_retrieval_recall@5/seqhw=2"]
    assert {"dataset", "seqhw", "gflops", "n"} <= table[0].keys()
    page = scores._repr_html_()
    assert page.count("<table>") == 2
    assert "toy · zeroshot_retrieval · 24 images" in page
    loaded = flexiclip.evaluate(run.load(), [str(place / "toy.yaml")], seqhw=[2])
    assert [row.metrics for row in loaded.rows] == [row.metrics for row in scores.rows if row.seqhw == 2]
    assert loaded.report is None


def test_export_onnx_returns_the_files(run: TrainedRun, place: Path) -> None:
    written = flexiclip.export_onnx(run.folder, place / "encoders", seqhw=[2, 4], normalize_inside=True)
    names = ["image-2.onnx", "image-4.onnx", "text.onnx", "text_tokenizer"]
    assert [path.name for path in written.files] == names
    assert all(path.exists() for path in written.files)
    session = onnxruntime.InferenceSession(str(written.files[2]), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", "sequence"]
    assert "smallest cosine" in str(written)
    assert written._repr_html_().count("<li>") == len(written.lines)


def test_flexiclip_train_is_a_function_whatever_was_imported_before() -> None:
    """A package has that name too, which an evaluation imports."""
    names = "[callable(flexiclip.train), flexiclip.train.trainer.__name__]"
    code = f"import flexiclip, flexiclip.train.trainer, json; print(json.dumps({names}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [True, "flexiclip.train.trainer"]
    assert set(flexiclip.__all__) >= {"train", "evaluate", "export_onnx", "load_recipe"}

"""The command line: mistakes are one line and exit code 2, and what it prints can be read back."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from kit.overrides import last_of_each
from PIL import Image

from flexiclip.__main__ import main
from flexiclip.config import dump, load

RECIPES = sorted(
    path.name.removesuffix(".yaml") for path in resources.files("flexiclip_recipes").iterdir() if path.name.endswith(".yaml")
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard of 12 samples, a run of two steps under `run`, and one with its text tower locked under `locked`."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    with webdataset.TarWriter(str(folder / "train-0000.tar"), encoder=False) as writer:
        for number in range(12):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(buffer, "PNG")
            writer.write({"__key__": f"s{number}", "png": buffer.getvalue(), "txt": f"a thing number {number}".encode()})
    (folder / "picture.png").write_bytes(buffer.getvalue())
    (folder / "broken.yaml").write_text("model: [1, 2\ntrain:\n")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "0.png").write_bytes(buffer.getvalue()[:60])
    (folder / "picture.npz").write_bytes(buffer.getvalue())
    locked = ["model.text.lock=true", "model.text.init=run", "tokenizer.path=run/tokenizer.model"]
    for argv in (["run_dir=run"], ["run_dir=locked", *locked]):
        ran = flexiclip(folder, "train", *small(folder), *argv)
        assert ran.returncode == 0, ran.stderr
    return folder


def small(folder: Path, *overrides: str) -> list[str]:
    data = f"data.train={folder}/train-*.tar"
    return last_of_each(["debug", data, "train.steps=2", "train.global_batch_size=4", "tokenizer.vocab_size=40", *overrides])


def flexiclip(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`python -m flexiclip ARGV` in a folder."""
    command = [sys.executable, "-m", "flexiclip", *argv]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory is `place`; what a run leaves in the process is undone."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    monkeypatch.chdir(place)
    yield place
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


TRAIN_ON = "train debug train.global_batch_size=4 data.train="
TRAIN = f"{TRAIN_ON}train-0000.tar"
WORDS = "tokenizer.path=run/tokenizer.model"
MISTAKES = {
    "": "the following arguments are required: COMMAND",
    "frobnicate": "invalid choice: 'frobnicate'",
    "train": "the following arguments are required: recipe; see flexiclip train",
    "data check": "the following arguments are required: shards",
    "eval run": "the following arguments are required: --suite",
    "explain train.stepps": "unknown key 'train.stepps': did you mean train.steps?",
    "explain train.steps --recipe nonesuch": "no recipe 'nonesuch': neither a file nor one of debug",
    "show-config nonesuch": "no recipe 'nonesuch': neither a file nor one of debug",
    "show-config broken.yaml": "broken.yaml: not YAML",
    "show-config picture.png": "picture.png: not a recipe",
    f"{TRAIN} modle.embed_dim=8": "unknown key 'modle': did you mean 'model'?",
    f"{TRAIN} train.stepps=8": "unknown key 'train.stepps': did you mean 'steps'?",
    f"{TRAIN} train.steps": "override 'train.steps': write dotted.key=value",
    f"{TRAIN} train.steps=fast": "'fast' is not a duration",
    f"{TRAIN} train.steps=[2": "override train.steps: not YAML",
    f"{TRAIN} patch.seqhw=[2,5]": "[5] do not divide model.image.image_size=48; valid: [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]",
    f"{TRAIN_ON}missing-0000.tar": "missing-0000.tar",
    f"{TRAIN_ON}train-{{0000..0001}}.tar": "train-0001.tar",
    f"{TRAIN_ON}missing-*.tar": "missing-*.tar",
    f"{TRAIN_ON}picture.png": "picture.png",
    f"{TRAIN} data.train=train-0001.tar": "and 'data.train=train-0001.tar' set the same key: give it once",
    "eval run --suite openmoji --suite openmoji": "--suite openmoji is given twice",
    "analyze run --output out --suite openmoji --suite openmoji": "--suite openmoji is given twice",
    "eval run --suite openmoji --workers 2 --workers=3": "--workers is given twice",
    "export image run --output=a.onnx --output=b.onnx": "--output is given twice",
    "export model run-0 run-1 --format timm --output out": "unrecognized arguments: run-1 (the shell makes several words",
    f"{TRAIN} tokenizer.path=picture.png": "tokenizer.path=picture.png: not a sentencepiece model",
    f"{TRAIN} tokenizer.path=missing.model": "tokenizer.path=missing.model: cannot read it",
    f"{TRAIN} model.text.lock=true": "model.text.lock=true freezes a tower without weights",
    f"{TRAIN} model.image.lock=true model.image.init=empty": "model.image.init=empty is not a model: it lacks",
    f"{TRAIN} loss.kind=sigmoid": "loss.kind=sigmoid needs model.logit_bias_init",
    f"{TRAIN} run_dir=picture.png": "run_dir=picture.png is a file",
    f"{TRAIN} run_dir=run": "run holds a run with ",
    f"{TRAIN} run_dir=new train.resume=empty": "empty is not a complete checkpoint",
    f"{TRAIN} run_dir=new train.resume=run/checkpoints/step-2 model.embed_dim=8": "step-2: the weights do not fit",
    f"{TRAIN} run_dir=new train.resume=locked/checkpoints/step-2 {WORDS}": "step-2 has not trained text_tower.",
    f"{TRAIN} eval.suites=[nonesuch]": "no suite 'nonesuch'",
    "eval empty --suite openmoji": "empty is not a model: it lacks",
    "eval missing --suite openmoji": "missing is not a model: there is no such file or folder",
    "eval run --suite nonesuch": "no suite 'nonesuch': neither a file nor one of",
    "eval run --suite openmoji --seqhw 2,x": "'2,x' is not a list of grid sides",
    "eval run --suite openmoji --widths a": "'a' is not a list of columns such as 64,128",
    "eval run --suite openmoji --batch-size 0": "--batch-size: '0' is not a whole number above 0",
    "eval run --suite openmoji --workers=-1": "--workers: '-1' is not a whole number above 0",
    "eval run --suite openmoji --device gpu": "--device gpu: torch has none such (",
    "eval run --suite openmoji --output picture.png": "--output picture.png: cannot write there",
    "plan debug --device cpu train.steps=5": "train.steps=5 (write key=value before the options)",
    "train debug --data.train=x": "(a key of the recipe has no dashes: write data.train=x)",
    "train debug --data.train x.tar": "(a key of the recipe has no dashes: write data.train=x.tar)",
    "plan debug --device cpu --seed=3": "(a key of the recipe has no dashes: write seed=3)",
    "plan debug --device cpu --gpuss=x": "unrecognized arguments: --gpuss=x; see flexiclip",
    "export image run --output image.pt": "--output image.pt: a file of --format onnx ends in .onnx; name one, or a folder",
    "export model run --format timm --output out --hub a/b": "--hub has no meaning for --format timm",
    "export model run --format open_clip --output out --hub b": "--hub b: write ORG/REPO",
    "export image run --images broken --output image.onnx": "image file is truncated; name images that decode",
    "export image open_clip:nonesuch/openai --output image.onnx": "nonesuch",
    "export model run --format big_vision --images empty --output m.npz": "--images has no meaning for --format big_vision",
    "export model run --format big_vision --output picture.npz": "--output picture.npz: something is there already",
    "plan debug --device h100 --json missing/plan.json": "--json missing/plan.json: cannot write there",
    f"{TRAIN} run_dir=new train.resume=run/checkpoints/step-2 {WORDS} train.steps=1": "step 2, beyond the 1 of train.steps=1",
    "data index missing-*.tar": "missing-*.tar",
    "data tokenizer missing.tar --output words.model": "missing.tar",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line(in_place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main(command.split()) == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert all(said.startswith(("training a sentencepiece tokenizer", "going on from")) for said in progress)
    assert line.startswith("flexiclip: ")
    assert MISTAKES[command] in line


def test_a_real_process_says_it_alike(place: Path) -> None:
    ran = flexiclip(place, "train", *small(place), "engine.zero_stagee=2")
    assert ran.returncode == 2
    assert ran.stderr == "flexiclip: unknown key 'engine.zero_stagee': did you mean 'zero_stage'?\n"
    assert ran.stdout == ""


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.global_batch_size=5", "train.global_batch_size=5 does not divide by the 2 ranks"),  # after the ranks have met
        ("train.stepps=5", "unknown key 'train.stepps': did you mean 'steps'?"),  # before they do
    ],
)
def test_a_mistake_of_all_ranks_is_one_line(place: Path, override: str, line: str) -> None:
    """torchrun adds its own account of the failed ranks; ours is a line of rank 0, without a traceback."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flexiclip"]
    command = [*torchrun, "train", *small(place, override), "run_dir=odd"]
    ran = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode != 0
    said = [each for each in ran.stderr.splitlines() if each.startswith("flexiclip: ")]
    assert len(said) == 1, ran.stderr
    assert said[0].startswith(f"flexiclip: {line}")
    assert "UserError" not in ran.stderr
    assert "exitcode  : 2" in ran.stderr
    assert not (place / "odd").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_show_config_prints_yaml_that_loads_again(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-config", recipe, "seed=7", "optimizer.lr=3e-4"]) == 0
    shown = capsys.readouterr().out
    written = tmp_path / "shown.yaml"
    written.write_text(shown)
    config = load(written)
    assert (config.seed, config.optimizer.lr) == (7, 3e-4)
    assert config == load(recipe, ["seed=7", "optimizer.lr=3e-4"])
    assert dump(config) == shown


def test_a_run_leaves_what_the_documents_promise(place: Path) -> None:
    run = place / "run"
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "bad_samples.jsonl", "checkpoints", "model"} <= {
        p.name for p in run.iterdir()
    }
    assert {"model.safetensors", "config.yaml", "tokenizer"} <= {path.name for path in (run / "model").iterdir()}
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-2"
    assert load(run / "config.yaml").train.global_batch_size == 4


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for option, expected in (("--version", "0.1.0"), ("--help", "train a model from a recipe")):
        with pytest.raises(SystemExit) as left:
            main([option])
        assert left.value.code == 0
        assert expected in capsys.readouterr().out


def test_a_first_start_that_failed_may_be_mended(in_place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It left a run folder without a checkpoint; nothing of it, its tokenizer neither, binds the next start."""
    wrong = small(in_place, "run_dir=mended", "tokenizer.vocab_size=30", "model.text.init=empty")
    assert main(["train", *wrong]) == 2
    assert main(["train", *small(in_place, "run_dir=mended")]) == 0
    assert load("mended/config.yaml").tokenizer.vocab_size == 40
    for file in ("tokenizer.model", "model/model.safetensors"):
        assert (in_place / "mended" / file).read_bytes() == (in_place / "run" / file).read_bytes(), file


@pytest.mark.parametrize("code", ["no", "256", "-1"])
def test_exit_code_of_a_stopped_run_must_be_one(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEXICLIP_STOPPED_CODE", code)
    assert main(["train", "debug"]) == 2
    assert capsys.readouterr().err == f"flexiclip: FLEXICLIP_STOPPED_CODE={code} must be an exit code, 0 to 255\n"

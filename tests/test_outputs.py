"""Every command that writes, on a place that cannot be written to: one line, exit code 2, and nothing half-written is left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import webdataset
from kit.full_disk import at_most

from flexiclip.__main__ import main
from flexiclip.config import from_dict
from flexiclip.config.schema import Config
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.datasets.vendors import build_openmoji
from flexiclip.errors import UserError
from flexiclip.model_folder import build_model, save_model

GOLDEN = Path(__file__).parent / "golden" / "flexivit_gap_params.npz"
FULL, LIMIT = os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG)
SMALL = {"width": 32, "depth": 1, "heads": 2}
# command -> the name of its output: a file's or a folder's.
COMMANDS = {
    f"import {GOLDEN} --format big_vision": "o",
    "export image model --format onnx": "o.onnx",
    "export image model --format torch": "o.pt2",
    "export text model --format torch": "o.pt2",
    "export model model --format open_clip": "o",
    "export model model --format transformers": "o",
    "export model model --format timm": "o",
    "export model ours --format big_vision": "o.npz",
    "data cue-conflict --pixels 8": "o",
    "data tokenizer words.tar --vocab-size 30": "o.model",
    "plan debug --device h100": "o.json",
}
COSTLY = {"export image model --format onnx", "export image model --format torch", "export model model --format open_clip"}
TRACED = {*COSTLY, "export text model --format torch"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model of CLIP's architecture, one of our own, and a shard of captions."""
    folder = tmp_path_factory.mktemp("outputs")
    captions = [f"a thing with number {number}" for number in range(12)]
    words = train_sentencepiece(captions, folder / "words.model", 40, lowercase=True)
    image = {**SMALL, "image_size": 32, "base_patch_size": 16, "base_grid": 2, "pool": "tok", "pre_norm": True}
    image |= {"patch_bias": False, "norm_eps": 1e-5, "activation": "quick_gelu"}
    text = {**SMALL, "causal": True, "pad_mask": False, "norm_eps": 1e-5, "activation": "quick_gelu"}
    given: dict[str, Any] = {"model": {"embed_dim": 16, "image": image, "text": text}, "patch": {"seqhw": [2]}}
    given["tokenizer"] = {"path": str(words), "context_length": 8}
    save_model(folder / "model", build_model(from_dict(Config, given)))
    image, text = {**SMALL, "image_size": 32, "base_patch_size": 16, "base_grid": 2}, {**SMALL, "pad_mask": False, "pool": "last"}
    given["model"] = {"embed_dim": 16, "image": image, "text": text}
    save_model(folder / "ours", build_model(from_dict(Config, given)))
    with webdataset.TarWriter(str(folder / "words.tar"), encoder=False) as writer:
        for number, caption in enumerate(captions):
            writer.write({"__key__": str(number), "txt": caption.encode()})
    return folder


def arguments(command: str, output: Path | str) -> list[str]:
    option = "--json" if command.startswith("plan") else "--output"
    return [*command.split(), option, str(output)]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("training a sentencepiece")]
    (line,) = lines
    return line


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - COSTLY))
def test_a_file_that_cannot_grow(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first byte, or one after some hundreds or thousands, is refused."""
    monkeypatch.chdir(place)
    name = COMMANDS[command]
    new = tmp_path / "new"
    for size in (0,) if command.startswith("export") else (0, 400, 3000):
        new.mkdir()
        with at_most(size):
            code = main(arguments(command, new / name))
        if code == 0:
            assert size > 0, "nothing was written at all"
            assert max(path.stat().st_size for path in new.rglob("*") if path.is_file()) <= size
            capsys.readouterr()
            shutil.rmtree(new)
            continue
        line = said(capsys)
        assert code == 2, line
        assert line.startswith("flexiclip: --")
        assert f"{new / name}: cannot write there: {LIMIT}" in line
        assert list(new.iterdir()) == [], "half of it was left"
        new.rmdir()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_cannot_be_made(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where a folder should be, a name too long, a folder that the system keeps for itself, a file for a folder."""
    monkeypatch.chdir(place)
    suffix = Path(COMMANDS[command]).suffix
    (tmp_path / "file").write_text("kept")
    bad = [tmp_path / "file" / f"o{suffix}", tmp_path / ("x" * 300 + suffix), Path(f"/proc/none/o{suffix}")]
    if not suffix:
        bad.append(tmp_path / "file")
    for output in bad:
        assert main(arguments(command, output)) == 2, output
        line = said(capsys)
        assert line.startswith("flexiclip: ")
        assert str(output) in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_where_a_file_should_be(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export of an encoder takes a folder too (tests/export/test_write_encoder.py)."""
    monkeypatch.chdir(place)
    encoders = ("export image", "export text")
    files = {command: name for command, name in COMMANDS.items() if Path(name).suffix and not command.startswith(encoders)}
    for command, name in files.items():
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        assert main(arguments(command, folder)) == 2, command
        assert str(folder) in said(capsys)
        assert list(folder.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == set(files.values())


def test_builders_of_emoji_leave_nothing(tmp_path: Path) -> None:
    """Shards that webdataset writes; a place without writing is refused before anything is drawn."""
    with at_most(5000), pytest.raises(UserError, match=f"--output .*set: cannot write there: {LIMIT}"):
        build_openmoji(tmp_path / "set", pixels=24, heldout=4, limit=12)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*set: cannot write there: File exists .*file"):
        build_openmoji(tmp_path / "file" / "set", pixels=0)  # nothing is as small as that


def mount(folder: Path, *options: str) -> None:
    """A file system in memory."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here, which takes root: {mounted.stderr.strip()}")


def test_a_full_and_a_read_only_file_system(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    full, fixed = tmp_path / "full", tmp_path / "fixed"
    mount(full, "-o", "size=12k")
    mount(fixed, "-o", "ro")
    try:
        for command, name in COMMANDS.items():
            if command in TRACED:
                continue
            assert main(arguments(command, fixed / name)) == 2, command
            assert f"{fixed / name}: cannot write there: {os.strerror(errno.EROFS)}" in said(capsys)
            if main(arguments(command, full / name)) == 2:
                assert f"{full / name}: cannot write there: {FULL}" in said(capsys)
                assert list(full.iterdir()) == [], command
            else:
                assert name in ("o.json", "o.model")
                capsys.readouterr()
                (full / name).unlink()
    finally:
        for folder in (full, fixed):
            subprocess.run(["umount", "--lazy", folder], check=True)

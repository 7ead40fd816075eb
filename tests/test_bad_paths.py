"""Every path that a command reads, given something else: one line that names it, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexiclip.__main__ import main

# `@` is the path at fault. Nothing of the output may be there afterwards.
COMMANDS = [
    "train @ run_dir=out",
    "train debug run_dir=out data.train=@",
    "train debug run_dir=out data.train=t.tar tokenizer.path=@",
    "train debug run_dir=out data.train=t.tar tokenizer.path=t.model model.image.init=@",
    "train debug run_dir=out data.train=t.tar tokenizer.path=t.model train.resume=@",
    "train debug run_dir=out data.train=t.tar eval.suites=[@]",
    "show-config @",
    "plan @ --device h100",
    "eval @ --suite openmoji --device cpu",
    "analyze @ --suite openmoji --output out --device cpu",
    "export image @ --output out",
    "export text @ --output out",
    "export model @ --format timm --output out",
    *(f"import @ --format {name} --output out" for name in ("big_vision", "timm", "open_clip", "siglip", "transformers")),
    "import @ --format timm --arch vit_tiny_patch16_224 --output out",
    "data noto --package @ --output out",
    "data index @",
    "data tokenizer @ --output out",
]
BINARY = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are nothing that any command reads."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "folder").mkdir()
    for suffix in ("", ".npz", ".tar", ".safetensors", ".bin", ".yaml"):
        (folder / f"binary{suffix}").write_bytes(BINARY)
    (folder / "words.yaml").write_text("just words\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    for name in ("t.tar", "t.model"):
        (folder / name).write_bytes(BINARY)
    return folder


NAMES = [
    "missing",
    "folder",
    "binary",
    "binary.npz",
    "binary.tar",
    "binary.safetensors",
    "binary.bin",
    "binary.yaml",
    "words.yaml",
    "list.yaml",
    "loop",
    "dangling",
    "binary/inside",
    "x" * 300,
    "not-\udcff-text",
    "a\tb",
    "",
    "no:such://place",
]


def written(folder: Path) -> list[str]:
    """What is there, but for the cached indices of shards."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".index"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_path_is_one_line(
    command: str, bad: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bad)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = written(bad)
    for name in NAMES:
        if not name and "=@" in command:
            continue  # an override without a value is null
        argv = [word.replace("@", name) for word in command.split()]
        assert main(argv) == 2, argv
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("flexiclip: ")]
        assert len(said) == 1, argv
        for told in ("Traceback", " object at 0x", "\x1b"):
            assert told not in said[0], said
        assert written(bad) == before, argv

"""Every kind of source on real files and a real web server: what is read, and each mistake in one line with exit code 2."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from flexiclip_eval import DatasetConfig, EvalOptions, TaskConfig, evaluate_suites
from flexiclip_eval.data.images import open_source
from flexiclip_eval.embeddings.embed import class_embeddings
from flexiclip_eval.suites.load import complete, load_datasets
from kit.evaluation import toy_model, toys
from kit.flaky_server import FlakyServer
from kit.roots import png, write_root

from flexiclip.__main__ import main
from flexiclip.errors import UserError
from flexiclip.model_folder import save_model


class TreeServer(FlakyServer):
    """The server of the data tests, which looks files up by their last name alone: here folders are written into it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        handler: Any = self._server.RequestHandlerClass
        handler._content = lambda request: _read(folder / request.path.split("?")[0].lstrip("/"))


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FlakyServer]:
    (tmp_path / "site").mkdir()
    with TreeServer(tmp_path / "site") as server:
        yield server


def test_a_root_gives_its_tasks_classes_and_templates(tmp_path: Path) -> None:
    root = write_root(tmp_path / "wds_toys", "classification")
    (dataset,) = load_datasets([str(root)])
    (task,) = dataset.tasks
    assert (dataset.name, task.kind, task.label) == ("toys", "classification", "cls")
    assert task.classes == ("animals", "flags", "food")
    assert task.templates == ("a photo of {c}", "{c}")
    source = open_source(dataset)
    assert [source.item(i, ["cls"]).labels["cls"] for i in range(len(source))] == [i % 3 for i in range(13)]
    assert np.array_equal(np.asarray(source.item(3, []).image), np.asarray(toys(4)[3].image))


def test_evaluation_decodes_large_jpegs_whole(tmp_path: Path) -> None:
    """docs/guides/performance.md: training may decode them at a half or less (data.scaled_decoding), whatever the tower sees."""
    data = io.BytesIO()
    toys(1)[0].image.resize((1024, 768)).save(data, "JPEG")
    with webdataset.TarWriter(str(tmp_path / "x.tar"), encoder=False) as writer:
        writer.write({"__key__": "a", "jpg": data.getvalue(), "txt": b"a thing"})
    (tmp_path / "photos" / "things").mkdir(parents=True)
    (tmp_path / "photos" / "things" / "a.jpg").write_bytes(data.getvalue())
    shards = DatasetConfig(shards=str(tmp_path / "x.tar"), tasks=(TaskConfig("retrieval"),))
    for dataset in (shards, complete(DatasetConfig(images=str(tmp_path / "photos")))):
        assert open_source(dataset).item(0, []).image.size == (1024, 768)


def test_the_captions_and_the_many_classes_of_a_root(tmp_path: Path) -> None:
    retrieval = complete(DatasetConfig(root=str(write_root(tmp_path / "r", "retrieval"))))
    assert open_source(retrieval).item(4, []).captions == ("thing 4", "seen 4")
    multi = complete(DatasetConfig(root=str(write_root(tmp_path / "m", "multilabel"))))
    assert [task.kind for task in multi.tasks] == ["multilabel"]
    assert [open_source(multi).item(i, ["npy"]).labels["npy"] for i in (0, 1)] == [(1,), (0, 1)]


def test_a_url_scores_as_the_folder_does(site: FlakyServer, tmp_path: Path) -> None:
    root = write_root(site.folder / "wds_toys" / "resolve" / "main", "classification")
    loaded = toy_model(tmp_path)
    here = evaluate_suites([("toy", loaded)], [str(root)], options=EvalOptions(batch_size=4))
    there = evaluate_suites([("toy", loaded)], [f"{site.url}/wds_toys/resolve/main"], options=EvalOptions(batch_size=4))
    assert [row.dataset for row in there] == ["toys"] * 3
    assert [(row.metrics, row.n, row.seqhw) for row in there] == [(row.metrics, row.n, row.seqhw) for row in here]
    assert len(there) == 3
    assert there[0].n == 13


def test_a_shipped_suite_reads_a_mirror_and_the_hub(site: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror, hub = site.folder, site.folder / "datasets" / "clip-benchmark"
    imagenet = write_root(mirror / "wds_imagenet1k", "classification", shards=(4, 3))
    (imagenet / "classnames.txt").write_text("missile\ncat\nmissile\n")
    for name, count in (("mscoco_captions", 3), ("flickr8k", 2), ("flickr30k", 4)):
        write_root(mirror / f"wds_{name}", "retrieval", shards=(count,))
    for name in ("vtab-cifar10", "vtab-cifar100"):
        write_root(hub / f"wds_{name}" / "resolve" / "main", "classification", shards=(5,))
    loaded = toy_model(tmp_path)
    monkeypatch.setenv("FLEXICLIP_WDS", site.url)
    rows = evaluate_suites([("toy", loaded)], ["imagenet1k", "retrieval"], seqhw=[3])
    assert [(row.dataset, row.n) for row in rows] == [
        ("imagenet1k", 7),
        ("mscoco_captions", 3),
        ("flickr8k", 2),
        ("flickr30k", 4),
    ]
    (task,) = load_datasets(["imagenet1k"])[0].tasks
    assert task.words == {"missile": ("missile",), "cat": ("cat",), "missile #2": ("missile",)}
    monkeypatch.setenv("FLEXICLIP_WDS", str(mirror))
    assert evaluate_suites([("toy", loaded)], ["imagenet1k"], seqhw=[3])[0].metrics == rows[0].metrics
    monkeypatch.delenv("FLEXICLIP_WDS")
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    rows = evaluate_suites([("toy", loaded)], ["cifar"], seqhw=[3])
    assert [(row.dataset, row.n) for row in rows] == [("vtab-cifar10", 5), ("vtab-cifar100", 5)]


def write_folder(root: Path) -> Path:
    for number, name in enumerate(("red_fox", "owl", "owl", "red_fox/deeper")):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{number}.PNG").write_bytes(png(number))
    return root


def test_a_folder_of_classes(tmp_path: Path) -> None:
    config = complete(DatasetConfig(images=str(write_folder(tmp_path / "pets"))))
    source = open_source(config)
    assert config.name == "pets"
    assert [source.item(i, ["folder"]).labels["folder"] for i in range(4)] == ["owl", "owl", "red_fox", "red_fox"]
    assert config.tasks[0].words == {"owl": ("owl",), "red_fox": ("red fox",)}
    before = source.fingerprint()
    assert open_source(config).fingerprint() == before
    (tmp_path / "pets" / "owl" / "1.PNG").write_bytes(png(5) + b"changed")
    assert open_source(config).fingerprint() != before
    (tmp_path / "pets" / "newt").mkdir()
    with pytest.raises(UserError, match="'newt' has no image"):
        open_source(complete(config))
    listed = TaskConfig("classification", label="folder", classes=("owl", "emu"))
    with pytest.raises(UserError, match="'emu' of the suite has no folder"):
        open_source(DatasetConfig(images=str(tmp_path / "pets"), tasks=(listed,)))


def test_a_table_of_paths_and_captions(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    table = tmp_path / "captions.csv"
    table.write_text('filepath,title,kind\nimages/1.png,"one, quoted",bird\nimages/0.png,zero,fish\nimages/1.png,one more,bird\n')
    source = open_source(complete(DatasetConfig(csv=str(table))))
    assert [source.item(i, ["kind"]).captions for i in range(len(source))] == [("one, quoted", "one more"), ("zero",)]
    assert source.item(1, ["kind"]).labels == {"kind": "fish"}
    assert np.array_equal(np.asarray(source.item(0, []).image), np.asarray(toys(2)[1].image))
    tabs = tmp_path / "open_clip.tsv"
    tabs.write_text(f"path\ttext\n{tmp_path}/images/0.png\tan absolute, path\n")
    absolute = open_source(complete(DatasetConfig(csv=str(tabs), image_column="path", caption_column="text")))
    assert absolute.item(0, []).captions == ("an absolute, path",)
    with pytest.raises(UserError, match="no column 'filepath'; it has path, text"):
        open_source(complete(DatasetConfig(csv=str(tabs))))
    table.write_text("filepath,title\nimages/0.png,one\u2028line\x85still\n", encoding="utf-8")
    assert open_source(complete(DatasetConfig(csv=str(table)))).item(0, []).captions == ("one\u2028line\x85still",)
    table.write_text("filepath,title\nimages/0.png,zero\nimages/9.png,nine\n")
    with pytest.raises(UserError, match=r"line 3: a caption without an image: there is no file .images/9.png"):
        open_source(complete(DatasetConfig(csv=str(table))))


def test_a_broken_file_is_counted_and_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    (root / "owl" / "1.PNG").write_bytes(png(1)[:60])
    suite = tmp_path / "pets.yaml"
    suite.write_text(json.dumps({"datasets": [{"images": str(root)}]}))
    rows = evaluate_suites([("toy", toy_model(tmp_path))], [str(suite)], output=tmp_path / "out")
    assert {row.n for row in rows} == {3}
    (bad,) = json.loads((tmp_path / "out" / "report.json").read_text())["bad_samples"]
    assert bad["key"].endswith("owl/1.PNG")
    assert "cannot be decoded" in bad["reason"]


def test_prompts_are_averaged_class_by_class() -> None:
    table = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    got = class_embeddings(lambda texts: table[[int(text) for text in texts]], [["0"], ["1", "2", "3"], ["4", "5"]])
    for row, members in zip(got.numpy(), ([0], [1, 2, 3], [4, 5]), strict=True):
        mean = table.numpy()[members].astype(np.float64).mean(0)
        assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def _no_shards(root: Path) -> None:
    (root / "test" / "nshards.txt").unlink()


def _twice(root: Path) -> None:
    (root / "classnames.txt").write_text("animals\nflags\nanimals\n")


def _no_slot(root: Path) -> None:
    (root / "zeroshot_classification_templates.txt").write_text("a photo\n")


def _too_few(root: Path) -> None:
    (root / "classnames.txt").write_text("animals\nflags\n")


def _no_image(root: Path) -> None:
    with webdataset.TarWriter(str(root / "test" / "0.tar"), encoder=False) as writer:
        writer.write({"__key__": "s0", "cls": b"1"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_shards, "nshards.txt: no such file"),
        (_twice, "'animals' is given twice in classnames.txt; to keep both, give --suite a file with datasets: [{root: "),
        (_no_slot, "'a photo' has no {c}"),
        (_too_few, "label 2 of 0.tar/s0000002 is not among its 2 classes"),
        (_no_image, "the sample s0 has no image"),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(
    damage: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_root(tmp_path / "toys", "classification", shards=(3,))
    damage(root)
    save_model(tmp_path / "model", toy_model(tmp_path))
    assert main(["eval", str(tmp_path / "model"), "--suite", str(root), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flexiclip: ")
    assert said in error


def test_a_url_that_nobody_answers(site: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nshards.txt: no such file"):
        load_datasets([f"{site.url}/nothing"])
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/.*cannot be reached"):
        load_datasets(["http://127.0.0.1:9/wds_toys"])
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "aiohttp", None)
        patched.delitem(sys.modules, "fsspec.implementations.http", raising=False)
        patched.delitem(sys.modules["fsspec.registry"]._registry, "https", raising=False)  # which an earlier read has filled
        with pytest.raises(UserError, match=r"wds_cars.*aiohttp is not installed; run `pip install 'flexiclip\[http\]'`"):
            load_datasets(["https://huggingface.co/datasets/clip-benchmark/wds_cars"])

"""Folders of images and tables as suites: what is read as what, and what is said about a guess."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from flexiclip_eval import DatasetConfig, TaskConfig, evaluate_suites, load_suite
from flexiclip_eval.suites.load import complete
from kit.evaluation import encode_one_by_one, slow_recall, texts_one_by_one, toy_model, toys, unit

from flexiclip.errors import UserError


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/CLASS/N.png for 24 toys, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for number, toy in enumerate(toys(24)):
        file = tmp_path / "photos" / f"the_{toy.category}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        toy.image.save(file)
    return tmp_path


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "flexiclip.eval"]


def test_a_folder_of_class_folders_is_scored_as_it_is(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Classification with the names of the folders and the default template, against the same numbers image by image."""
    loaded = toy_model(images)
    (row,) = evaluate_suites([("toy", loaded)], ["photos"], seqhw=[3])
    assert (row.dataset, row.task, row.n) == ("photos", "zeroshot_classification", 24)
    (line,) = said(caplog)
    classes = sorted({f"the_{toy.category}" for toy in toys(24)})
    assert line == f"photos: {len(classes)} classes from the names of the folders ({', '.join(classes[:3])}, ...)"
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in classes]
    scores = encode_one_by_one(loaded, toys(24), 3) @ unit(texts_one_by_one(loaded, prompts)).T
    right = scores.argmax(1) == np.array([classes.index(f"the_{toy.category}") for toy in toys(24)])
    assert row.metrics["acc1"] == pytest.approx(right.mean())


@pytest.mark.parametrize(
    ("splits", "scored", "train"),
    [
        (("train", "test", "val"), "test", True),
        (("train", "val"), "val", True),
        (("train",), "train", False),
        (("valid",), "valid", False),
    ],
)
def test_a_folder_of_splits_is_scored_on_its_test_split(
    splits: tuple[str, ...], scored: str, train: bool, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in splits:
        for name in ("cat", "dog"):
            (images / "split" / split / name).mkdir(parents=True)
            toys(1)[0].image.save(images / "split" / split / name / "a.png")
    (dataset,) = load_suite("split").datasets
    assert (dataset.name, dataset.images) == ("split", f"split/{scored}")
    assert dataset.train == ("split/train" if train else None)
    assert said(caplog) == [f"split: the split {scored}, 2 classes from the names of the folders (cat, dog)"]


def test_a_class_may_have_the_name_of_a_split(images: Path) -> None:
    """A folder with images directly in it is a class, whatever its name is."""
    for name in ("train", "car"):
        (images / "vehicles" / name).mkdir(parents=True)
        toys(1)[0].image.save(images / "vehicles" / name / "a.png")
    (dataset,) = load_suite("vehicles").datasets
    assert dataset.images == "vehicles"
    assert list(complete(dataset).tasks[0].words) == ["car", "train"]


def test_captions_in_a_folder_add_retrieval(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The table's paths begin at the table; a table without images is left out, with the reason."""
    items = toys(24)
    lines = [f"the_{toy.category}/{number:02d}.png,{toy.captions[0]}" for number, toy in enumerate(items)]
    (images / "photos" / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    (images / "photos" / "sizes.csv").write_text("width,height\n3,4\n")
    loaded = toy_model(images)
    classification, retrieval = evaluate_suites([("toy", loaded)], ["photos"], seqhw=[3], output=images / "out")
    assert (classification.dataset, retrieval.dataset) == ("photos", "photos-metadata")
    assert said(caplog)[1:] == [
        "photos/metadata.csv: images from the column 'file_name', captions from 'text'",
        "photos/sizes.csv: is left out: photos/sizes.csv: no column has the paths of images; it has width, height: rename one to "
        "filepath, or write a suite with image_column",
    ]
    captions = list(dict.fromkeys(toy.captions[0] for toy in items))
    positive = np.array([[toy.captions[0] == text for toy in items] for text in captions])
    scores = texts_one_by_one(loaded, captions) @ encode_one_by_one(loaded, items, 3).T
    assert retrieval.metrics["image_retrieval_recall@5"] == pytest.approx(slow_recall(scores, positive, 5))


@pytest.mark.parametrize(
    ("heading", "columns", "tasks"),
    [
        ("filepath,title", ("filepath", "title"), ["retrieval"]),
        ("Image Path\tCaption\tid", ("Image Path", "Caption"), ["retrieval"]),
        ("id,file-name,category", ("file-name", "title"), ["classification"]),
        ("img,text,label", ("img", "text"), ["retrieval", "classification"]),
        ("picture,words", ("picture", "words"), ["retrieval"]),  # by what the cells are, and because one column is left
    ],
)
def test_columns_are_guessed_and_said(
    heading: str, columns: tuple[str, str], tasks: list[str], images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = heading.replace("\t", ",").split(",")
    path = next(str(file.relative_to(images)) for file in sorted(images.glob("photos/*/*.png")))
    cells = [path if name == columns[0] else "a thing" for name in names]
    place = "t.tsv" if "\t" in heading else "t.csv"
    (images / place).write_text(f"{heading}\n" + ("\t" if "\t" in heading else ",").join(cells) + "\n")
    (dataset,) = load_suite(place).datasets
    assert (dataset.name, dataset.image_column, dataset.caption_column) == ("t", *columns)
    assert [task.kind for task in dataset.tasks] == tasks
    (line,) = said(caplog)
    assert line.startswith(f"{place}: images from the column {columns[0]!r}, ")
    assert all(repr(task.label) in line for task in dataset.tasks if task.label)


def test_a_table_is_scored_as_it_is(images: Path) -> None:
    lines = [f"photos/the_{toy.category}/{i:02d}.png\t{toy.captions[0]}\t{toy.category}" for i, toy in enumerate(toys(24))]
    (images / "mine.tsv").write_text("\n".join(["path\tcaption\tclass", *lines]) + "\n")
    suite = images / "mine.yaml"
    suite.write_text(
        "datasets: [{csv: mine.tsv, image_column: path, caption_column: caption, "
        "tasks: [{kind: retrieval}, {kind: classification, label: class}]}]"
    )
    loaded = toy_model(images)
    guessed, written = (evaluate_suites([("toy", loaded)], [each], seqhw=[3]) for each in ("mine.tsv", "mine.yaml"))
    assert [row.metrics for row in guessed] == [row.metrics for row in written]
    assert [row.dataset for row in guessed] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"no column has the paths of images; it has a, b: rename one to filepath"),
        ("filepath,a,b\nx.png,1,2\n", r"no column has captions or classes; it has filepath, a, b: rename one to title or label"),
        ('"filepath,title\n', r"not CSV"),
    ],
)
def test_a_table_that_cannot_be_guessed(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load_suite(str(tmp_path / "t.csv"))


def test_folders_that_are_no_suite(images: Path) -> None:
    (images / "flat").mkdir()
    toys(1)[0].image.save(images / "flat" / "a.png")
    with pytest.raises(UserError, match=r"flat: has images, but neither class folders .* nor a table of captions"):
        load_suite("flat")
    (images / "empty").mkdir()
    assert load_suite("empty").datasets[0].root == "empty", "as before: CLIP_benchmark's layout, which says what is missing"
    (images / "wds" / "test").mkdir(parents=True)
    (images / "wds" / "test" / "nshards.txt").write_text("1")
    assert load_suite("wds").datasets[0].root == "wds"


def test_a_flat_folder_with_captions_has_retrieval_alone(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    (images / "flat").mkdir()
    toys(1)[0].image.save(images / "flat" / "a.png")
    (images / "flat" / "captions.tsv").write_text("filename\tcaption\na.png\ta thing\n")
    with caplog.at_level(logging.WARNING):
        (dataset,) = load_suite("flat").datasets
    assert dataset == DatasetConfig(
        "flat", csv="flat/captions.tsv", tasks=(TaskConfig("retrieval"),), image_column="filename", caption_column="caption"
    )

"""Suites: what is read, and that every mistake is said in one line with its mend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flexiclip_eval import DatasetConfig, TaskConfig, load_suite
from flexiclip_eval.suites.load import SUITES, complete, load_datasets, load_readable, read_files
from kit.roots import write_root

from flexiclip.errors import UserError


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_installed_suites_load(name: str) -> None:
    suite = load_suite(name)
    assert all(dataset.root or dataset.csv or dataset.tasks for dataset in suite.datasets)
    assert len({dataset.name for dataset in suite.datasets}) == len(suite.datasets)


def test_openmoji_reads_its_folder_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXICLIP_DATA", "/elsewhere")
    (dataset,) = load_suite("openmoji").datasets
    assert dataset.shards == "/elsewhere/openmoji/heldout-*.tar"
    assert {task.kind for task in dataset.tasks} == {"retrieval", "classification"}


PUBLISHED = """mscoco_captions flickr8k flickr30k imagenet1k imagenetv2 imagenet_sketch imagenet-a imagenet-r imagenet-o objectnet
    fer2013 voc2007 sun397 cars fgvc_aircraft mnist stl10 gtsrb country211 renderedsst2 vtab-caltech101 vtab-cifar10 vtab-cifar100
    vtab-clevr_count_all vtab-clevr_closest_object_distance vtab-diabetic_retinopathy vtab-dmlab vtab-dsprites_label_orientation
    vtab-dsprites_label_x_position vtab-dsprites_label_y_position vtab-dtd vtab-eurosat vtab-kitti_closest_vehicle_distance
    vtab-flowers vtab-pets vtab-pcam vtab-resisc45 vtab-smallnorb_label_azimuth vtab-smallnorb_label_elevation vtab-svhn"""
"""CLIP_benchmark's benchmark/webdatasets.txt, with `-` for the `/` of a name, as its addresses have it."""
COLLECTIONS = ("vtab", "vtab+", "retrieval", "imagenet_robustness")


def test_shipped_suites_are_the_collections_of_clip_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_benchmark.datasets.builder import dataset_collection

    monkeypatch.delenv("FLEXICLIP_WDS", raising=False)
    named: dict[str, set[str]] = {}
    for path in SUITES.glob("*.yaml"):
        roots = [dataset.root for dataset in load_suite(path.stem).datasets if dataset.root]
        assert all(root.startswith("https://huggingface.co/datasets/clip-benchmark/wds_") for root in roots)
        named[path.stem] = {root.rpartition("/wds_")[2] for root in roots}
    theirs = {name: {each.replace("/", "-") for each in dataset_collection[name]} for name in COLLECTIONS}
    theirs["vtab+"].remove("voc2007_multilabel")
    theirs["imagenet_robustness"].add("imagenet-o")
    assert {name: named[name] for name in COLLECTIONS} == theirs
    assert set.union(*named.values()) == set(PUBLISHED.split()) - {"vtab-dsprites_label_y_position"}


def test_a_typo_names_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("datasets: [{name: a, shards: a.tar, tasks: [{kind: classification, lable: cls}]}]")
    with pytest.raises(UserError, match=r"lable.*did you mean 'label'"):
        load_suite(str(file))


def test_an_unknown_suite_lists_the_names() -> None:
    with pytest.raises(UserError, match="did you mean 'openmoji'"):
        load_datasets(["openmojy"])
    with pytest.raises(UserError, match=r"neither a file nor one of .*openmoji"):
        load_suite("imagenet-of-mine")


def test_load_suite_refuses_what_is_no_list_of_data_sets(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    for text, said in (
        ("[a, b]", "a suite is a mapping with the key datasets, not a list"),
        ("datasets: []", "the suite has no datasets; list at least one"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=f"suite.yaml: {said}"):
            load_suite(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"suite\.yaml: "):
        load_suite(str(file))
    with pytest.raises(UserError, match="no suite to evaluate: give --suite NAME"):
        load_datasets([])


def test_load_suite_of_a_folder_or_url_is_one_data_set(tmp_path: Path) -> None:
    for place in (str(tmp_path), "https://example.org/wds_cars"):
        assert load_suite(place).datasets == (DatasetConfig(root=place),)


def test_two_data_sets_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="share a name"):
        load_datasets(["openmoji", "openmoji"])


def test_load_readable_gives_the_others_and_the_errors_by_name(tmp_path: Path) -> None:
    good, absent = (write_root(tmp_path / f"wds_{name}", "classification", shards=(4,)) for name in ("good", "absent"))
    (absent / "test" / "nshards.txt").unlink()
    found, failed = load_readable([str(absent), str(good)])
    assert ([dataset.name for dataset in found], list(failed)) == (["good"], ["absent"])
    assert "nshards.txt: no such file" in str(failed["absent"])
    assert load_readable([str(absent)])[0] == []


def test_class_files_and_prompts_of_several_data_sets(tmp_path: Path) -> None:
    root = write_root(tmp_path / "toys", "classification")
    prompts = tmp_path / "cupl.json"
    prompts.write_text(
        json.dumps({"toys": {"animals": ["it runs"], "flags": ["it waves", "it flaps"], "food": ["tasty"]}, "other": {}})
    )
    task = TaskConfig("classification", label="cls", prompts=str(prompts))
    (done,) = complete(DatasetConfig(root=str(root), tasks=(task,))).tasks
    assert done.class_prompts(done.words) == [["it runs"], ["it waves", "it flaps"], ["tasty"]]
    prompts.write_text('{"animals": ["a"], "animals": ["b"]}')
    with pytest.raises(UserError, match="'animals' is given twice"):
        complete(DatasetConfig(root=str(root), tasks=(task,)))


def test_read_files_takes_classes_templates_and_prompts_from_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    (tmp_path / "words.json").write_text('{"pets": {"cat": "a cat", "dog": ["a dog", "a puppy"]}, "cars": {"vw": "a car"}}')
    (tmp_path / "templates.txt").write_text("a {c}\nthe {c}\n")

    def read(**keys: str) -> TaskConfig:
        files = {key: str(tmp_path / name) for key, name in keys.items()}
        return read_files(TaskConfig("classification", label="cls", **files), "me/pets")  # type: ignore[arg-type]

    assert read(classes="names.txt").classes == read(classes="names.json").classes == ("cat", "dog")
    assert read(classes="words.json").classes == {"cat": "a cat", "dog": ["a dog", "a puppy"]}
    assert read(templates="templates.txt").templates == ("a {c}", "the {c}")
    assert read(prompts="words.json").prompts == {"cat": "a cat", "dog": ["a dog", "a puppy"]}
    with pytest.raises(UserError, match=r"absent\.txt' has no \{c\} for the class name, and there is no file of this name"):
        read(templates="absent.txt")
    with pytest.raises(UserError, match=r"names\.json: prompts map each class to a list of texts, not a list"):
        read(prompts="names.json")

"""What a run says before its first step."""

from __future__ import annotations

from collections.abc import Callable

from kit.launch import Trained


def test_banner_says_what_is_about_to_run(fit: Callable[..., Trained]) -> None:
    run = fit(2, "train.steps=3", "optimizer.warmup=0")
    said = (run.folder.parent / "log.0").read_text().splitlines()
    count = sum(tensor.numel() for tensor in run.weights().values()) / 1e6
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in said if len(line.split()) > 1}
    assert lines["model"] == f"{count:,.1f} M parameters, {count:,.1f} M of them train"
    assert lines["data"] == "96 samples, 0.375 epochs"
    assert lines["run"] == "3 steps of 12 samples, on 2 ranks of 6"
    assert lines["device"] == "cpu, fp32"
    assert "estimated for each rank, of " in lines["memory"]
    assert lines["folder"] == str(run.folder)
    assert lines["curves"] == f"tensorboard --logdir {run.folder}"
    assert "model" not in (run.folder.parent / "log.1").read_text(), "only the main rank says it"


def test_banner_warns_of_a_warm_up_that_does_not_end(fit: Callable[..., Trained]) -> None:
    run = fit(1, "train.steps=2", "optimizer.warmup=2000")
    said = (run.folder.parent / "log.0").read_text()
    assert "optimizer.warmup=2000 is not shorter than the run of 2 steps: the learning rate reaches" in said

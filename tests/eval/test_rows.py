"""The names and the numbers of metrics, and the metric that represents a task."""

from __future__ import annotations

from flexiclip_eval.rows import best_of, family_of, is_share, long_name, pixels, primary_metric, short_name, show

R5, RANK = "image_retrieval_recall@5", "image_retrieval_median_rank"


def test_names_and_numbers_of_metrics() -> None:
    assert (short_name(R5), long_name(R5)) == ("text→image R@5", "text → image recall@5")
    assert (short_name("text_retrieval_recall@1"), long_name(RANK)) == ("image→text R@1", "text → image median rank")
    assert (family_of(R5), family_of("acc1")) == ("image_retrieval_recall", "accuracy")
    assert (is_share("acc1"), is_share(RANK)) == (True, False)
    assert (best_of("acc1", [0.2, 0.3]), best_of(RANK, [2.0, 3.0])) == (0.3, 2.0)
    assert [show("acc1", 0.12345), show(RANK, 1234.56), show("acc1", None)] == ["12.3%", "1,234.6", "–"]
    assert [pixels(60), pixels([48, 96]), pixels(None)] == ["60", "48×96", ""]


def test_primary_metric_of_each_task() -> None:
    expected = {
        "acc1": {"mean_per_class_recall": 1.0, "acc5": 1.0, "acc1": 1.0},
        R5: {"text_retrieval_recall@5": 1.0, RANK: 1.0, R5: 1.0},
        "mean_average_precision": {"mean_average_precision": 1.0},
        "acc": {"text_acc": 1.0, "image_acc": 1.0, "acc": 1.0},
        "lp_acc1": {"lp_mean_per_class_recall": 1.0, "lp_acc1": 1.0},
        "other": {"other": 1.0, "more": 1.0},
    }
    assert {name: primary_metric(metrics) for name, metrics in expected.items()} == {n: n for n in expected}

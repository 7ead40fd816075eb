"""The evaluation inside a run as a table of lengths by metrics, with its step."""

from __future__ import annotations

from flexiclip.train.eval_table import evaluation_table


def test_a_table_for_each_task_with_a_column_for_each_length() -> None:
    values = {
        "toy/retrieval/image_retrieval_recall@5/seqhw=3": 0.2213,
        "toy/retrieval/image_retrieval_median_rank/seqhw=3": 1110.0,
        "toy/retrieval/image_retrieval_recall@5/seqhw=15": 1.0,
        "toy/retrieval/image_retrieval_median_rank/seqhw=15": 1.5,
        "toy/classification/acc1/seqhw=3": 0.0,
    }
    assert evaluation_table(375, values).splitlines() == [
        "step 375: toy/retrieval",
        "  seqhw                              3      15",
        "  image retrieval recall@5       22.1%  100.0%",
        "  image retrieval median rank  1,110.0     1.5",
        "step 375: toy/classification",
        "  seqhw     3",
        "  acc1   0.0%",
    ]


def test_a_length_without_a_value_and_a_name_of_another_form() -> None:
    values = {"a/b/acc1/seqhw=3": 0.5, "a/b/acc5/seqhw=6": 0.75, "toy/length": 2.34567, "a/b/acc1/seqhw=None": 0.25}
    assert evaluation_table(2, values).splitlines() == [
        "step 2: toy/length 2.3457",
        "step 2: a/b",
        "  seqhw      3      6   None",
        "  acc1   50.0%      –  25.0%",
        "  acc5       –  75.0%      –",
    ]

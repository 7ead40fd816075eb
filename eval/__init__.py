"""The evaluation harness: it scores an image-text model on retrieval and classification at every sequence length.

    flexiclip eval MODEL --suite openmoji --seqhw 5,8,15 --output runs/eval

The folder is `eval/`, but the package is `flexiclip_eval`, because a module named `eval` would shadow Python's built-in `eval`
for people who read the code.
"""

if __name__ == "eval":
    raise ImportError("this folder is installed as flexiclip_eval: import flexiclip_eval, not eval")

from flexiclip_eval.rows import Row
from flexiclip_eval.run import EvalOptions, evaluate_suites, make_evaluators
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.load import SuiteConfig, load_suite
from flexiclip_eval.suites.task import TaskConfig

__all__ = ["DatasetConfig", "EvalOptions", "Row", "SuiteConfig", "TaskConfig", "evaluate_suites", "load_suite", "make_evaluators"]

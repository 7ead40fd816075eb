"""What changes over training, each a pure function of the step: the sequence length, the micro-batch and the learning rate."""

from flexiclip.schedules.batches import micro_batches, pair_tokens, within_budget
from flexiclip.schedules.budget import TERA, horizon_of
from flexiclip.schedules.horizon import Horizon
from flexiclip.schedules.lengths import SeqhwSchedule
from flexiclip.schedules.rates import learning_rate

__all__ = ["TERA", "Horizon", "SeqhwSchedule", "horizon_of", "learning_rate", "micro_batches", "pair_tokens", "within_budget"]

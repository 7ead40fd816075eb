"""The parts of scripts/mutation.sh: the core and its tests, the tree that mutmut changes, the hits of ranks, the record."""

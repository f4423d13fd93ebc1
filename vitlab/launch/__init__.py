"""From a configuration to a run: the plan, the stages in order, and the processes that share them."""

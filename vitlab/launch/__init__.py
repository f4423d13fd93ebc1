"""Execution of a run: the plan, the stages in order, and the processes of all ranks."""

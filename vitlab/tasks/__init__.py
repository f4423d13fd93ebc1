"""What a network predicts: one file a task, found by its name; see :mod:`vitlab.tasks.base`."""

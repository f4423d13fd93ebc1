"""Plain supervised training: the yardstick of every other method."""

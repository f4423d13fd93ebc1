"""What can be done with a model besides training it: one file a mode, ``answer(composed) -> exit code``.

The head of a file says what the mode is for and what it reads: see :mod:`vitlab.config.catalogue`.
"""

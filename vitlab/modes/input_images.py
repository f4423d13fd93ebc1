"""The pictures that ``input=`` names: files, folders, globs, lists of these, or names from standard input.

No torch here. Names come one at a time, so that a list of a million names that another program writes is followed as
it grows.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from vitlab.data.audit_files import available_cores
from vitlab.data.decode import EXTENSIONS, read_rgb, walk_files
from vitlab.errors import UserError


def expand(value: object) -> Iterator[str]:
    """The files that ``value`` names, in order: a folder's images (hidden ones passed over) to any depth, sorted.

    A file is given as it was named, also when it is missing or has a foreign suffix: reading it reports that.

    Raises:
        UserError: nothing is named, a folder without images, a glob that matches nothing.
    """
    words = [str(one) for one in value] if isinstance(value, list) else [] if value is None else [str(value)]
    if not any(words):
        raise UserError(
            "No pictures are named.", "Give input=FILE, input=FOLDER, input='*.jpg', a list, or input=- for names."
        )
    for word in words:
        if word == "-":
            for line in sys.stdin:
                if line.strip():
                    yield from _files(line.rstrip("\r\n"))
        else:
            yield from _files(word)


def _files(word: str) -> Iterator[str]:
    path = os.path.expanduser(word)
    if os.path.isdir(path):
        inside = sorted(_images(path))
        if not inside:
            raise UserError(f"The folder {word} holds no image.", f"Images end in {', '.join(sorted(EXTENSIONS))}.")
        yield from inside
    elif glob.has_magic(path) and not os.path.exists(path):
        matched = sorted(glob.glob(path, recursive=True))
        if not matched:
            raise UserError(f"{word} matches no file.", "** matches folders to any depth.")
        for one in matched:
            yield from _files(one)
    else:
        yield path


def _images(folder: str) -> Iterator[str]:
    for at, folders, names in walk_files(Path(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield os.path.join(at, name)


def read_all(
    paths: Iterable[str], workers: int | None = None, ahead: int = 64
) -> Iterator[tuple[str, Image.Image | UserError]]:
    """Each path with its RGB image, or with what is wrong with it, in order.

    ``workers`` threads decode (Pillow does so outside Python's lock), at most ``ahead`` images before they are asked
    for. None: one thread for each core.
    """
    with ThreadPoolExecutor(workers or available_cores(), thread_name_prefix="read") as pool:
        waiting: deque[tuple[str, Future[Image.Image | UserError]]] = deque()
        try:
            for path in paths:
                waiting.append((path, pool.submit(_read, path)))
                # What is decoded is handed on at once, so that answers to a slow list of names do not wait for it.
                while waiting and (len(waiting) >= ahead or waiting[0][1].done()):
                    first, image = waiting.popleft()
                    yield first, image.result()
            while waiting:
                first, image = waiting.popleft()
                yield first, image.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(path: str) -> Image.Image | UserError:
    try:
        return read_rgb(Path(path))
    except UserError as error:
        return error

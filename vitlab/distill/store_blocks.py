"""The blocks of a sealed slot: each is compared with its checksum before the first of its records is used."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlab.distill.store_spec import BLOCK, CRC, RECORDS, StoreSpec
from vitlab.distill.store_writer import read_seal


class SealedBlocks:
    """Checks the blocks of one slot, each once for this reader.

    A block (8192 records, 3.3 MB at K = 100) is read in one piece, at the speed of the disk and of CRC-32 (2.7 GB/s on
    one core, measured); the file system then has its pages for the random reads of the records. A training on
    ImageNet-1k checks 518 MB an epoch in each loader process.

    Raises:
        ValueError: the checksums are damaged themselves.
    """

    def __init__(self, folder: Path, spec: StoreSpec) -> None:
        self._records = folder / RECORDS
        self._bytes = BLOCK * spec.record.itemsize
        blocks = -(-spec.images // BLOCK)
        path = folder / CRC
        stored = path.read_bytes() if path.is_file() else b""
        if len(stored) != 4 * blocks or zlib.crc32(stored) != read_seal(folder):
            raise ValueError(f"{CRC} is not the file that was sealed")
        self._expected = np.frombuffer(stored, "<u4")
        self._checked = np.zeros(blocks, bool)
        self._complete = False  # every block is checked

    def check(self, index: NDArray[Any]) -> None:
        """Check the blocks of these images.

        Raises:
            ValueError: naming the images of a block that is not what was sealed.
        """
        if self._complete:
            return
        blocks = np.unique(np.asarray(index) // BLOCK)
        blocks = blocks[~self._checked[blocks]]
        if not len(blocks):
            return
        with open(self._records, "rb") as file:
            for block in blocks.tolist():
                file.seek(block * self._bytes)
                crc = zlib.crc32(file.read(self._bytes))
                if crc != self._expected[block]:
                    first = block * BLOCK
                    raise ValueError(f"images {first} to {first + BLOCK - 1}: checksum {crc:08x}, not as sealed")
                self._checked[block] = True
        self._complete = bool(self._checked.all())

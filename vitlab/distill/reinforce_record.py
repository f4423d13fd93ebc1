"""A reinforcement's parameters as fields of a packed record, and back to a Draw.

Bytes beside the K classes (two bytes each up to 65,536 classes) and the K probabilities:

====================  =================================================================  =====
all                   crop 4 x u2 (padded: shift 2 x u1) and flags u1                        9
RandAugment, erasing  ops u1 each (2 op + sign), erase 4 x u1                                6
mixing                partner u4, its crop 4 x u2, two ratios f8, box 4 x u1                32
both                  the partner's ops and erase                                            6
====================  =================================================================  =====

At K = 10 with four-byte probabilities 69 (rrc), 101 (mixing), 75 (randaug) and 113 bytes (both); 49, 81, 55 and 93
with two-byte ones. An op whose argument is not in the table is an index into a side table (``Reinforcement.odd``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlab.distill.draw import GRID, Draw, Erase, Mix
from vitlab.distill.reinforce_draw import OPS, SIGNED, Reinforcement, magnitudes

FLIP, PARTNER_FLIP, MIXED, MIXUP, CUTMIX, ERASE, PARTNER_ERASE = (1 << bit for bit in range(7))
NO_OP = 255
"""Value of ``ops`` where RandAugment was skipped."""
ODD = 2 * len(OPS)
"""``ops`` from here on are indices into ``Reinforcement.odd``: arguments that are not in the table."""


class OddMagnitude(ValueError):
    """An argument of an op that is in neither the table nor ``Reinforcement.odd``; ``op`` is (name, signed value)."""

    def __init__(self, name: str, value: float, message: str) -> None:
        super().__init__(message)
        self.op = name, value


Fields = tuple[tuple[str, str, int], ...]


def record_fields(spec: Reinforcement) -> Fields:
    """Names, types and counts of the fields beside classes and probabilities: ``StoreSpec.fields``."""
    place = ("shift", "<u1", 2) if spec.pad is not None else ("crop", "<u2", 4)
    parts = [place, ("flags", "<u1", 1)]
    if spec.augments:
        parts += [("ops", "<u1", spec.ops), ("erase", "<u1", 4)]
    if spec.mixes:
        parts += [("partner", "<u4", 1), (f"partner_{place[0]}", *place[1:])]
        parts += [("mixup", "<f8", 1), ("cutmix", "<f8", 1), ("box", "<u1", 4)]
        if spec.augments:
            parts += [("partner_ops", "<u1", spec.ops), ("partner_erase", "<u1", 4)]
    return tuple(parts)


def encode(spec: Reinforcement, draws: Sequence[Draw]) -> dict[str, NDArray[Any]]:
    """The fields [B, n] of these draws.

    Raises:
        ValueError: for a draw that the record cannot represent without loss.
    """
    out: dict[str, NDArray[Any]] = {n: np.zeros((len(draws), count), kind) for n, kind, count in record_fields(spec)}
    table = magnitudes(spec.magnitude)
    for row, draw in enumerate(draws):
        _encode_one(spec, table, draw, out, row, "")
        flags = (FLIP if draw.flip else 0) | (ERASE if draw.erase is not None else 0)
        mix = draw.mix
        if mix is not None:
            if not spec.mixes or mix.partner is None or mix.draw is None or mix.grid != GRID:
                raise ValueError(f"variant {spec.variant} does not hold {mix}")
            _encode_one(spec, table, mix.draw, out, row, "partner_")
            flags |= MIXED | (PARTNER_FLIP if mix.draw.flip else 0)
            flags |= PARTNER_ERASE if mix.draw.erase is not None else 0
            out["partner"][row] = mix.partner
            if mix.ratio is not None:
                flags |= MIXUP
                out["mixup"][row] = mix.ratio
            if mix.box is not None:
                if mix.cut is None:
                    raise ValueError("a stored CutMix box needs the ratio that it was drawn with")
                flags |= CUTMIX
                out["cutmix"][row] = mix.cut
                out["box"][row] = _small(mix.box, 255)
        out["flags"][row] = flags
    return out


def decode(spec: Reinforcement, record: NDArray[np.void]) -> list[Draw]:
    """The draws of records [B]; the inverse of :func:`encode`."""
    table = magnitudes(spec.magnitude)
    columns = {name: record[name].reshape(len(record), -1).tolist() for name, _, _ in record_fields(spec)}
    return [_decode_row(spec, table, columns, row) for row in range(len(record))]


def _decode_row(spec: Reinforcement, table: tuple[float, ...], columns: dict[str, Any], row: int) -> Draw:
    flags = columns["flags"][row][0]
    own = _decode_one(spec, table, columns, row, "", bool(flags & FLIP), bool(flags & ERASE))
    if not flags & MIXED:
        return own
    other = _decode_one(spec, table, columns, row, "partner_", bool(flags & PARTNER_FLIP), bool(flags & PARTNER_ERASE))
    mix = Mix(
        ratio=columns["mixup"][row][0] if flags & MIXUP else None,
        box=tuple(columns["box"][row]) if flags & CUTMIX else None,
        grid=GRID,
        partner=columns["partner"][row][0],
        draw=other,
        cut=columns["cutmix"][row][0] if flags & CUTMIX else None,
    )
    return dataclasses.replace(own, mix=mix)


def _encode_one(
    spec: Reinforcement, table: tuple[float, ...], draw: Draw, out: dict[str, NDArray[Any]], row: int, of: str
) -> None:
    """One image's part of a row, except its flags."""
    if spec.pad is not None:
        if draw.shift is None or draw.shift[0] != spec.pad or draw.crop is not None:
            raise ValueError(f"a padded crop by {spec.pad} is stored, not {draw}")
        out[f"{of}shift"][row] = _small(draw.shift[1:], 255)
    else:
        if draw.crop is None or draw.shift is not None:
            raise ValueError(f"a crop is stored, not {draw}")
        out[f"{of}crop"][row] = _small(draw.crop, 65535)
    if draw.vertical_flip or draw.jitter or draw.grid != GRID or (draw.ops and draw.op_set != "torchvision"):
        raise ValueError(f"the record does not hold {draw}")
    if not spec.augments:
        if draw.ops or draw.erase is not None:
            raise ValueError(f"variant {spec.variant} does not hold {draw}")
        return
    if draw.ops and len(draw.ops) != spec.ops:
        raise ValueError(f"{spec.ops} ops are stored, not {len(draw.ops)}")
    out[f"{of}ops"][row] = [_code(spec, table, *op) for op in draw.ops] if draw.ops else NO_OP
    if draw.erase is not None:
        box = draw.erase
        if box.mode != "black":
            raise ValueError(f"erasing is stored as a black box, not {box}")
        out[f"{of}erase"][row] = _small((box.top, box.left, box.height, box.width), 255)


def _decode_one(
    spec: Reinforcement,
    table: tuple[float, ...],
    columns: dict[str, Any],
    row: int,
    of: str,
    flip: bool,
    erased: bool,
) -> Draw:
    ops: tuple[tuple[str, float], ...] = ()
    if spec.augments and NO_OP not in (codes := columns[f"{of}ops"][row]):
        ops = tuple(
            spec.odd[code - ODD]
            if code >= ODD
            else (OPS[code >> 1], -table[code >> 1] if code & 1 else table[code >> 1])
            for code in codes
        )
    crop = shift = None
    if spec.pad is not None:
        top, left = columns[f"{of}shift"][row]
        shift = spec.pad, top, left
    else:
        crop = tuple(columns[f"{of}crop"][row])
    erase = None
    if erased:
        y, x, height, width = columns[f"{of}erase"][row]
        erase = Erase(y, x, height, width, "black")
    return Draw(crop=crop, shift=shift, flip=flip, ops=ops, erase=erase, op_set="torchvision")


def _code(spec: Reinforcement, table: tuple[float, ...], name: str, value: float) -> int:
    """2 op + sign, or :data:`ODD` + index in the side table.

    Raises:
        OddMagnitude: neither code decodes to this value.
    """
    number = OPS.index(name)
    negative = value < 0
    # Exact comparison of doubles: decode() must return the argument that the view was made with.
    if abs(value) == table[number] and (not negative or number in SIGNED):
        return 2 * number + negative
    if (name, value) in spec.odd:
        return ODD + spec.odd.index((name, value))
    raise OddMagnitude(name, value, f"{name} by {value} is not magnitude {table[number]}, nor one of the side table")


def _small(values: Sequence[int], top: int) -> Sequence[int]:
    if min(values) < 0 or max(values) > top:
        raise ValueError(f"{tuple(values)} does not fit into 0..{top}")
    return values

"""Checkpoint files as they occur: prefixes × further tensors × wrappers × types × damage."""

from __future__ import annotations

import argparse
import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from torch import Tensor

State = dict[str, Tensor]

PREFIXES = (
    "",
    "module.",
    "model.",
    "net.",
    "student.",
    "backbone.",
    "module.encoder.",
    "_orig_mod.",
    "network.é.",
    "a.b.",
)
WRAPPERS = ("", "state_dict", "model", "model_state_dict", "net", "state_dict_ema", "weights", "0", "a/b", "ema")


class Executed:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@dataclass(frozen=True)
class WeightsFile:
    """A file.

    Attributes:
        data: its bytes.
        suffix: of its name.
        sound: it holds all weights of the network, bit for bit in their type.
        dtype: of its floating-point tensors.
        what: in words.
    """

    data: bytes
    suffix: str
    sound: bool
    dtype: torch.dtype
    what: str

    def __repr__(self) -> str:
        return f"WeightsFile({self.what}, {len(self.data)} bytes, {self.suffix})"


DTYPES = (torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)

ODD: dict[str, Any] = {
    "epoch": 3,
    "best": 0.5,
    "args": argparse.Namespace(lr=0.1),
    "numpy": np.float64(0.5),
    "names": ["cat", "dog"],
    "nothing": None,
    "nested": {"a": {"b": {"c": {"d": torch.ones(2)}}}},
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "ordered": OrderedDict(a=1),
    "text": "é\u202e",
}


@st.composite
def weights_files(draw: st.DrawFn, state: State, marker: Path) -> WeightsFile:
    """A file with the tensors of ``state``; one that would execute code writes ``marker``."""
    sound, what = True, []
    dtype = draw(st.sampled_from(DTYPES))
    tensors: dict[Any, Any] = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()
    }
    change = draw(st.sampled_from(["", "", "", "extra", "missing", "shape", "nan", "integers", "counts", "twin"]))
    some = draw(st.sampled_from(sorted(name for name, value in state.items() if value.dim() > 0)))
    if change == "extra":
        tensors[draw(st.sampled_from(["criterion.weight", "head.extra", "é", "", ".", "a..b", "metric"]))] = torch.ones(
            2
        )
        sound = False
    elif change == "missing":
        del tensors[some]
        sound = False
    elif change == "shape":
        tensors[some] = torch.ones(draw(st.sampled_from([(), (0,), (1,), (2, 2, 2, 2, 2)])))
        sound = False
    elif change == "nan":
        tensors[some] = torch.full_like(state[some], float("nan"))
        sound = False
    elif change == "integers":
        tensors[some] = torch.ones_like(
            state[some], dtype=draw(st.sampled_from([torch.int64, torch.bool, torch.complex64]))
        )
        sound = False
    elif change == "counts":
        tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    elif change == "twin":
        tensors |= {f"teacher.{name}": value * 2 for name, value in tensors.items()}
    what += [str(dtype), change or "all tensors"]
    prefix = draw(st.sampled_from(PREFIXES))
    tensors = {prefix + name: value for name, value in tensors.items()}
    what.append(f"prefix '{prefix}'")
    suffix = draw(st.sampled_from([".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".safetensors", ".txt", ""]))
    if suffix == ".safetensors":
        data = save_safetensors({name: value.contiguous().clone() for name, value in tensors.items()})
    else:
        content: Any = tensors
        wrapper = draw(st.sampled_from(WRAPPERS))
        for name in reversed(wrapper.split("/") if wrapper else []):
            content = {name: content}
        if draw(st.booleans()) and isinstance(content, dict):
            odd = draw(st.sampled_from(sorted(ODD)))
            content = {**content, odd: ODD[odd]}
            what.append(f"with {odd}")
        evil = draw(st.sampled_from([False] * 9 + [True]))
        if evil:
            content = {**content, "hook": Executed(marker)}
            sound = False
        buffer = io.BytesIO()
        if draw(st.sampled_from([False] * 9 + [True])):
            pickle.dump(content, buffer)
            sound = False
            what.append("plain pickle")
        else:
            torch.save(content, buffer, _use_new_zipfile_serialization=draw(st.sampled_from([True, True, True, False])))
        data = buffer.getvalue()
        what += [f"in '{wrapper}'", *(["would execute code"] if evil else [])]
    damage = draw(st.sampled_from(["", "", "", "cut", "flips", "zeros", "empty", "text", "list"]))
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data) - 1))]
    elif damage == "flips":
        changed = bytearray(data)
        for at in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=3)):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        data = bytes(changed)
    elif damage == "zeros":
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes(len(data) - at)
    elif damage == "empty":
        data = b""
    elif damage == "text":
        data = draw(st.binary(max_size=60))
    elif damage == "list":
        buffer = io.BytesIO()
        torch.save(draw(st.sampled_from([[1], torch.ones(3), None, 5, {}, {"a": {}}, {1: torch.ones(2)}])), buffer)
        data = buffer.getvalue()
    return WeightsFile(data, suffix, sound and not damage, dtype, ", ".join([*what, damage or "sound"]))

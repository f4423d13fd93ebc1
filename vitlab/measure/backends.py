"""Backends that run a network: eager PyTorch, torch.compile, ONNX Runtime, OpenVINO.

Each is a function that returns a call without arguments: one forward pass of the same random images, finished when it
returns. All use torch's number of threads.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitlab.measure.timing import forward_pass, synchronize

NEEDS = {"onnxruntime": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}
"""Packages beside torch that a backend needs."""

Pass = Callable[[], object]


def missing_packages(backend: str) -> list[str]:
    """Packages that ``backend`` needs and that are not installed."""
    return [name for name in NEEDS.get(backend, ()) if importlib.util.find_spec(name) is None]


def eager_pass(model: nn.Module, images: NDArray[np.float32]) -> Pass:
    """PyTorch, operation by operation, on the model's device and in eval mode (as it must be already)."""
    like = next(model.parameters())
    batch = torch.from_numpy(images).to(like.device, like.dtype)
    return forward_pass(model, batch)


def compiled_pass(model: nn.Module, images: NDArray[np.float32]) -> Pass:
    """torch.compile for this one shape; compilation happens in the first call."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of missing CUDA on a CPU
    like = next(model.parameters())
    batch = torch.from_numpy(images).to(like.device, like.dtype)
    fast = torch.compile(model, dynamic=False)

    def run() -> object:
        with torch.no_grad():  # not inference_mode: torch.compile would add guards on inference tensors to every call
            out = fast(batch)
        synchronize(like.device)
        return out

    return run


def onnxruntime_pass(file: Path, images: NDArray[np.float32]) -> Pass:
    """ONNX Runtime on the CPU; its threads sleep between calls, since spinning would slow down the other backends."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {session.get_inputs()[0].name: images})


def openvino_pass(file: Path, images: NDArray[np.float32]) -> Pass:
    """OpenVINO on the CPU."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on CPUs that support it, with other logits
    }
    network = core.compile_model(core.read_model(str(file)), "CPU", settings)
    request = network.create_infer_request()
    return lambda: request.infer([images])

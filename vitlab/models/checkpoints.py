"""Weights from files: reading them without unpickling code, and putting them into a network.

Three kinds of file are read: ``.safetensors``, a vitlab model folder (``model.safetensors`` + ``model.json``), and
anything ``torch.load(weights_only=True)`` accepts (``.pth``, ``.pt``, ``.ckpt``, ``.bin``). Nothing is dropped in
silence: a tensor that fits nowhere is an error, and a head that was left out is named in the returned report.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models.checkpoint_names import ENTRIES, candidates
from vitlab.models.clip_weights import fold_projection, is_clip_classifier
from vitlab.models.finite import list_first, non_finite
from vitlab.models.imagenet22k import CLASSES, map_rows
from vitlab.models.tinyvit_weights import adapt_state_dict, is_official, to_timm

WEIGHTS_FILE = "model.safetensors"

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Added by DistributedDataParallel, torch.compile, and by modules that keep the network as ``self.model``."""


_SCALAR: Any = np.float64(0).__reduce__()[0]
"""The function that rebuilds a NumPy number from its type and bytes."""

_PLAIN: list[Any] = [
    argparse.Namespace,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    _SCALAR,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
]
"""Plain data, no code: timm's and DeiT's training checkpoints carry their arguments, others a NumPy number."""


class _Options(TypedDict, total=False):
    rows: NDArray[np.int64] | None
    absent: str
    resize: str


class Misfit(UserError):
    """A checkpoint whose tensors are not those of the network."""


@dataclass
class LoadReport:
    """Result of loading a checkpoint into a network."""

    source: str
    loaded: int  # tensors copied
    head: list[str] = field(default_factory=list)  # head tensors that did not fit; all of the head was set to zero
    adapted: bool = False  # tensors were renamed or resized: official names, timm's own filter, tables of another size
    mapped: int = 0  # classes of the head that are among the checkpoint's 21,841
    new: list[str] = field(default_factory=list)  # tensors that the network adds; they keep their initialisation
    resized: list[str] = field(default_factory=list)  # tables of positions of another size
    head_note: str = ""  # what became of a head of ImageNet-22k, in words

    @property
    def is_exact(self) -> bool:
        """Whether the weights were taken as they are."""
        return not (self.head or self.mapped or self.new or self.resized)

    def __str__(self) -> str:
        text = f"{self.source}: {self.loaded} tensors loaded"
        if self.adapted:
            text += ", some of them renamed or resized for this architecture"
        if self.resized:
            text += f"; {len(self.resized)} tables of positions resized ({self.resized[0]}, ...)"
        if self.mapped:
            text += f"; {self.head_note or f'{self.mapped} classes of the head are taken from ImageNet-22k'}"
        if self.new:
            text += f"; {len(self.new)} tensors that the network adds keep their initialisation"
        if self.head:
            text += f"; the head has other classes and starts from zero ({', '.join(self.head)})"
        return text


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict that ``path`` holds, on the CPU, without wrappers' prefixes.

    Raises:
        UserError: no such file, not a checkpoint, or one that would have to be unpickled.
    """
    content = read_content(path)
    return strip_prefixes(_entry(content, path))


def read_content(path: Path) -> object:
    """Everything that the file ``path`` holds, tensors on the CPU; of a folder, its weights.

    Raises:
        UserError: no such file, not a checkpoint, or one that would have to be unpickled.
    """
    if path.is_dir():
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint at '{path}' (key checkpoint of a model).",
            "Give a .safetensors or .pth file, or a vitlab model folder.",
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"'{path}' is not a readable safetensors file ({error}).", "Copy it again.") from error
    return _torch_load(path)


def _torch_load(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about old formats of files
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        try:
            held = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except Exception:  # the names are only for the message, and the file may be no checkpoint at all
            held = ""
        raise UserError(
            f"'{path}' cannot be read as plain tensors" + (f": it holds Python objects ({held})." if held else "."),
            "vitlab unpickles nothing; save its state_dict alone, or convert it to .safetensors.",
        ) from error
    except Exception as error:  # what torch raises for bytes that only look like a checkpoint is of any kind
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"'{path}' is not a readable checkpoint ({reason}).", "Copy it again.") from error


def _entry(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        inner = next((content[name] for name in ENTRIES if isinstance(content.get(name), dict)), content)
        state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
        if state:
            return state
    raise UserError(
        f"'{path}' holds no weights.",
        f"Expected a state_dict, alone or under one of the keys {', '.join(ENTRIES)}.",
    )


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from all names (``module.``, ``_orig_mod.``, ``model.``, in any order)."""
    # Only a prefix that every name has belongs to a wrapper; one that some have is a submodule of the network. Wrappers
    # nest (DDP around torch.compile), hence the loop.
    while state:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_checkpoint(model: nn.Module, path: Path, keep_head: bool = True, **options: Unpack[_Options]) -> LoadReport:
    """Copy the weights in ``path`` into ``model``, from wherever in the file they fit.

    Averaged weights win over others, as in timm, and a teacher's come last; the report names the place. Where nothing
    fits, the error is that of the file read as usual.

    Args:
        keep_head, options: as :func:`load_weights`.

    Raises:
        UserError: as :func:`read_weights` and :func:`load_weights`; or two places fit equally well.
    """
    content = read_content(path)
    found = candidates(content, len(model.state_dict()))
    for number, one in enumerate(found):
        source = f"'{path}'" + (f" ({one})" if str(one) else "")
        try:
            report = load_weights(model, dict(one.state), source, keep_head, **options)
        except Misfit:
            continue
        if copies := [str(other) for other in found[number + 1 :] if other.rivals(one)]:
            raise UserError(
                f"'{path}' holds several networks that fit: {one}; {'; '.join(copies)}.",
                "Save the state_dict of one of them in a file of its own.",
            )
        return report
    names = list(_entry(content, path))
    try:
        return load_weights(model, strip_prefixes(_entry(content, path)), f"'{path}'", keep_head, **options)
    except Misfit as error:
        raise Misfit(error.what, f"The file has {', '.join(names[:2])}, ... {error.cure}") from error


def head_names(model: nn.Module) -> set[str]:
    """Names of the tensors of a timm model's classifier (those of ``get_classifier``); empty without one."""
    get_classifier: Callable[[], nn.Module | Collection[nn.Module]] | None = getattr(model, "get_classifier", None)
    if get_classifier is None:
        return set()
    found = get_classifier()
    heads: Iterable[nn.Module] = [found] if isinstance(found, nn.Module) else found
    # By identity, not by module name: a head may be registered under several names.
    own = {id(tensor) for head in heads for tensor in [*head.parameters(), *head.buffers()]}
    return {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own}


def zero_head(model: nn.Module) -> list[str]:
    """Set the classifier's linear or convolutional weights and biases to zero; returns the names of its tensors.

    A zero head predicts every class with equal probability and still learns from the first step, since its gradient
    depends on the features and not on its weights (tinyvit.md, section 6.4).
    """
    names = sorted(head_names(model))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for module_name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and f"{module_name}.weight" in names:
                parameters[f"{module_name}.weight"].zero_()
                if module.bias is not None:
                    parameters[f"{module_name}.bias"].zero_()
    return names


def load_weights(
    model: nn.Module,
    state: dict[str, Tensor],
    source: str,
    keep_head: bool = True,
    *,
    rows: NDArray[np.int64] | None = None,
    absent: str = "mean",
    resize: str = "official",
    new: Collection[str] | None = None,
) -> LoadReport:
    """Copy ``state`` into ``model``, or into its ``backbone`` where the names are those of the backbone.

    Only the head may differ, and tensors that the network adds (``new``) may be absent. Where the head's tensors are
    absent or of another shape (another number of classes), or where ``keep_head`` is false (other classes of the same
    number), the complete head is set to zero and reported. A head of ImageNet-22k is first reduced to the model's
    classes, whose positions are in ``rows``.

    Args:
        rows: position of each of the model's classes in ImageNet-22k (:func:`vitlab.models.imagenet22k.class_map`).
        absent: weights of a class without such a position, ``mean`` or ``zero``.
        resize: how TinyViT's bias tables are resized, ``official`` or ``timm``.
        new: names in the model's state dict that ``state`` may lack; None: the model's ``new_parameters()``.

    Raises:
        ValueError: ``new`` names a tensor that the network does not have, or a wrapper has tensors outside its backbone
            that are neither new nor its head.
        UserError: some other tensor is missing, unexpected, or of another shape; all of them are listed. Or a weight
            is not finite.
    """
    added = set(new if new is not None else new_parameters(model))
    if unknown := sorted(added.difference(model.state_dict())):
        raise ValueError(f"{type(model).__name__} has no {', '.join(unknown)}, which it declares as new")
    # A checkpoint of the wrapper itself names its backbone; one of the plain network does not.
    options: _Options = {"rows": rows, "absent": absent, "resize": resize}
    if added and (inside := _backbone(model)) and not any(name.startswith(f"{inside[0]}.") for name in state):
        return _load_backbone(model, *inside, state, source, keep_head, added, options)
    head = head_names(model)
    classifier = getattr(model, "pretrained_cfg", None) or {}
    names = classifier.get("classifier") or ()
    head_prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    own = model.state_dict()
    given = state
    # Conversions, each to timm's names: the network's own method, TinyViT's official names, CLIP's projection.
    if callable(own_names := getattr(model, "adapt_state_dict", None)):
        state = own_names(state)
    elif isinstance(model, TinyVit):  # timm's class cannot carry the method
        state = adapt_state_dict(model, state, resize)
    adapted = any(name not in given or given[name].shape != value.shape for name, value in state.items())
    if is_clip_classifier(state) and (converted := _timm_filter(model, fold_projection(state))) is not None:
        state, adapted = converted | {"head.bias": state["head.bias"]}, True
    mapped = 0
    if rows is not None:
        tall = [name for name in head if name in state and state[name].shape[0] == CLASSES != len(rows)]
        state = state | {name: map_rows(state[name], rows, absent) for name in tall}
        if tall:
            mapped, keep_head = int((rows >= 0).sum()), True
    # timm's filter only where the names do not fit as they are, and only if they fit after it: some filters rewrite
    # tensors of a checkpoint that already has timm's names.
    differences = _differences(own, state, head, head_prefixes, added)
    if differences:
        filtered = _timm_filter(model, state)
        if filtered is not None and not _differences(own, filtered, head, head_prefixes, added):
            state, differences, adapted = filtered, [], True
    if differences:
        shown = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
        raise Misfit(
            f"The checkpoint {source} does not fit the model: {shown}.",
            "Give the name and args of the model it was made with.",
        )
    fits = keep_head and all(name in state and state[name].shape == own[name].shape for name in head - added)
    matching = {name: value for name, value in state.items() if name in own and (fits or name not in head)}
    if bad := non_finite(model, matching):
        raise UserError(
            f"The checkpoint {source} has weights that are not finite ({list_first(bad)}).",
            "Use another one: the training that made it diverged, or the file is damaged.",
        )
    model.load_state_dict(matching, strict=False)  # not strict: every difference was checked above
    zeroed = [] if fits else zero_head(model)
    named = to_timm(given) if isinstance(model, TinyVit) and is_official(given) else given
    resized = [
        name
        for name, value in matching.items()
        if name not in head and name in named and named[name].shape != value.shape and value.ndim == named[name].ndim
    ]
    return LoadReport(source, len(matching), zeroed, adapted, mapped, sorted(added.difference(state)), resized)


def new_parameters(model: nn.Module) -> set[str]:
    """Names in the state dict of ``model`` that it declares as absent from the weights it starts from."""
    declare: Callable[[], Iterable[str]] | None = getattr(model, "new_parameters", None)
    return set(declare()) if declare is not None else set()


def _backbone(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The network inside a wrapper, and its name there."""
    found = getattr(model, "backbone", None)
    if not isinstance(found, nn.Module):
        return None
    names = [name for name, part in model.named_modules() if name and part is found]
    return (names[0], found) if names else None


def _load_backbone(
    model: nn.Module,
    name: str,
    backbone: nn.Module,
    state: dict[str, Tensor],
    source: str,
    keep_head: bool,
    added: set[str],
    options: _Options,
) -> LoadReport:
    """Copy ``state`` into the network inside a wrapper; the wrapper's other tensors must be declared as new."""
    prefix = f"{name}."
    beside = {one for one in model.state_dict() if not one.startswith(prefix)}
    if undeclared := sorted(beside - added - head_names(model)):
        raise ValueError(f"{type(model).__name__}.new_parameters() leaves out {', '.join(undeclared)}")
    within = {one.removeprefix(prefix) for one in added - beside}
    report = load_weights(backbone, state, source, keep_head, new=within, **options)
    report.new = sorted([*(prefix + one for one in report.new), *(beside & added)])
    if beside & head_names(model) - added:
        report.head = zero_head(model)
    else:
        report.head = [prefix + one for one in report.head]
    return report


def _differences(
    own: dict[str, Tensor], state: dict[str, Tensor], head: set[str], head_prefixes: tuple[str, ...], new: set[str]
) -> list[str]:
    """Every difference outside the head and what is new, as text."""
    optional = {name for name in [*own, *state] if name.endswith(".num_batches_tracked")}  # only counted, never used
    known = head | new | optional
    found = [f"missing {name}" for name in own if name not in state and name not in known]
    found += [
        f"unexpected {name}"
        for name in state
        if name not in own and name not in optional and not (head_prefixes and name.startswith(head_prefixes))
    ]
    found += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and name not in head and state[name].shape != own[name].shape
    ]
    # torch would copy the integers of a quantised file as they are, and half of a complex number.
    found += [
        f"{name} holds {_form(state[name])}, expected floating-point numbers"
        for name, value in own.items()
        if name in state and value.is_floating_point() and _form(state[name])
    ]
    return found


def _form(value: Tensor) -> str:
    """What a tensor is if not plain floating-point numbers; empty for those."""
    if value.is_quantized or value.layout != torch.strided:
        return f"{str(value.layout).removeprefix('torch.')} {str(value.dtype).removeprefix('torch.')}"
    return "" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")


def _timm_filter(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The state as timm's ``checkpoint_filter_fn`` for this architecture rewrites it (original authors' names,
    position tables of another size), or None where there is no such function or it fails on the file."""
    modules = (sys.modules[one.__module__] for one in type(model).__mro__ if issubclass(one, nn.Module))
    function = next((found for one in modules if (found := getattr(one, "checkpoint_filter_fn", None))), None)
    if function is None:
        return None
    try:
        filtered: dict[str, Tensor] = function(dict(state), model)
    # The filters assume files of their authors, and fail in any way on others; the caller then reports the differences.
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    return filtered

"""Networks: timm models built, initialised from files, grouped for the optimiser, and kept as artifacts.

``import vitlab.models`` registers vitlab's own networks with timm: every module of this package is imported, so that a
new network is one file and no entry in a list. The import takes as long as that of timm; code that must run without
torch imports nothing from here.

A network may have these members beyond timm's own conventions; all are optional:

``new_parameters() -> Iterable[str]``
    Names in its state dict that the weights it starts from cannot have; they keep their initialisation where a
    checkpoint lacks them, and everything else is loaded strictly.
``backbone`` (attribute)
    The network inside a wrapper to which such weights belong; default: the network itself.
``pretrained_backbone`` (attribute)
    timm name, with its tag, of the weights that ``model.pretrained`` starts from.
``adapt_state_dict(state) -> state``
    The weights of another code base under this network's names and shapes.
``layer_levels() -> dict[str, int]``
    Level of each parameter for layer-wise learning rates, where timm's ``group_matcher`` cannot express it.
``extra_macs(size) -> Mapping[str, int]``
    Further counts of multiply-adds of one image, e.g. a paper's own; shown beside the measured one.
``attention_maps(image) -> dict[str, Tensor]``
    Maps [B, N, h, w] >= 0 by name for ``mode=explain``; the N of one name (heads, tokens) are averaged.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

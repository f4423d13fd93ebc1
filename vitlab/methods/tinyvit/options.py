"""Keys under ``method.`` for TinyViT; their values stand in ``conf/method/tinyvit.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from vitlab.config import RecipeConfig


@dataclass
class ContractOptions:
    """How mode=contract searches (paper section on model scaling; its step sizes are ours)."""

    params: float = MISSING  # parameters of the network that is wanted
    speed: float = MISSING  # how many times as fast as the start it has to be; 0: speed is not asked for
    steps: int = MISSING  # contractions from the start to there; budgets shrink geometrically
    moves: int = MISSING  # factors that one contraction may change at once
    tolerance: float = MISSING  # share by which a candidate may miss a budget
    candidates: int = MISSING  # of each step that are measured and scored, those nearest to the budget first
    proxy: str = MISSING  # train (recipe, cut to duration) | params (no training: the largest is the best)
    duration: str = MISSING  # of the proxy's training
    holdout: float = MISSING  # share of every training class that judges it, where a set has no val beside test
    batch_size: int = MISSING  # of the throughput
    seconds: float = MISSING  # throughput is measured for so long, after half as long a warm-up


@dataclass
class TinyViTOptions:
    """Keys under ``method.``"""

    name: str = "tinyvit"
    topk: int = MISSING  # K: stored probabilities of each view (paper Fig. 5: 10 for IN-1k, 100 for IN-21k)
    prob_dtype: str = MISSING  # how they are stored: f2, f4 or bf16
    epochs: int | None = None  # stored views per image; null: one for each epoch of the recipe; fewer: used in turn
    clamp_minor: bool = False  # official: rounding may make the mass of the other classes slightly negative
    online: bool = False  # ask the teacher at every step instead of storing its labels: same views, same targets
    distill: bool = True  # false: no teacher; finetune what model.checkpoint or model.pretrained gives
    store: str | None = None  # train from this sealed store, ours or TinyViT's official one; no teacher is made
    store_to: str | None = None  # folder of the store, which several runs may fill together; null: inside the run
    store_views: list[int] | None = None  # [START, STOP): store only these views of every image, and train nothing
    replay: str = "cycle"  # cycle: stored views come round again when epochs outnumber them; exact: epoch e reads e
    baseline: bool = True  # train the same student on labels alone, with equally many steps
    finetune: RecipeConfig | None = None  # train on the labels afterwards; null: no
    recheck: int = 0  # mode=verify: so many random records are recomputed by the teacher
    convert_to: str | None = None  # mode=convert: folder to write method.store to, official to ours or back
    ranks: int = 1  # mode=convert: processes that the official store is to look written by
    named: bool = False  # mode=convert: official keys are image names (ImageNet-22k), not indices
    contract: ContractOptions = field(default_factory=ContractOptions)

"""Keys under ``method.`` for TinyViT; their values are in ``conf/method/tinyvit.yaml``.

:func:`check` refuses contradictions among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from vitlab.config import Config, RecipeConfig
from vitlab.config.ranges import choice, integer, number, positive, share
from vitlab.errors import UserError


@dataclass
class ContractOptions:
    """How mode=contract searches (paper section on model scaling; its step sizes are ours)."""

    params: float = number(low=1, high=1e12)  # most parameters of the target, with the head of this data set's classes
    speed: float = number(low=0, high=1e6)  # throughput of the target, as a multiple of the start's; 0: no limit
    steps: int = integer()  # contractions from start to target; budgets shrink geometrically (5.4e6 from 21M: 6)
    moves: int = integer()  # factors that one contraction may change at once
    tolerance: float = share()  # by which a candidate may miss a budget, but for the last step's, the target
    candidates: int = integer()  # of each step that are scored: of many kinds, in turn large and fast ones
    proxy: str = choice("train", "params")  # train (recipe, cut to duration), params (none: the largest is the best)
    duration: str = MISSING  # of the proxy's training
    holdout: float = share(open_low=True, open_high=True)  # of each class, to score it, if there is no val
    batch_size: int = integer()  # of the throughput
    seconds: float = positive()  # of the throughput measurement, after half as long a warm-up


@dataclass
class TinyViTOptions:
    """Keys under ``method.``"""

    name: str = "tinyvit"
    topk: int = integer()  # K: stored probabilities of each view (paper Fig. 5: 10 for IN-1k, 100 for IN-21k)
    prob_dtype: str = choice("f2", "f4", "bf16")  # how they are stored: f2, f4 or bf16
    epochs: int | None = integer(None)  # stored views per image; null: one per epoch of the recipe; fewer: used in turn
    clamp_minor: bool = False  # official: rounding may make the mass of the other classes slightly negative
    online: bool = False  # run the teacher at every step instead of storing its labels: same views, same targets
    distill: bool = True  # false: no teacher; finetune what model.checkpoint or model.pretrained gives
    store: str | None = None  # train from this sealed store, ours or TinyViT's official one; no teacher is made
    store_to: str | None = None  # folder of the store, which several runs may fill together; null: inside the run
    store_views: list[int] | None = integer(None, low=0)  # [START, STOP): store only these of each image, train nothing
    replay: str = choice("cycle", "exact", default="cycle")  # cycle: views repeat if epochs are more; exact: e reads e
    baseline: bool = True  # train the same student on labels alone, with equally many steps
    finetune: RecipeConfig | None = None  # train on the labels afterwards; null: no
    recheck: int = integer(0, low=0)  # mode=verify: number of random records recomputed by the teacher
    convert_to: str | None = None  # mode=convert: folder to write method.store to, official to ours or back
    ranks: int = integer(1)  # mode=convert: number of ranks of the official store
    named: bool = False  # mode=convert: official keys are image names (ImageNet-22k), not indices
    contract: ContractOptions = field(default_factory=ContractOptions)


def distils(config: Config) -> bool:
    return bool(config.method.distill)


def learns(config: Config) -> bool:
    """Whether a student is trained; a run that only fills its share of a store trains none."""
    return config.method.store_views is None


def makes_teacher(config: Config) -> bool:
    return distils(config) and config.method.store is None


def makes_store(config: Config) -> bool:
    return makes_teacher(config) and not config.method.online


def finetunes(config: Config) -> bool:
    """Whether to finetune on the labels; also without a teacher, where ``check`` then reports a missing recipe."""
    return learns(config) and (config.method.finetune is not None or not distils(config))


def views_of(config: Config) -> int | None:
    """Different views of every image where none are stored: as many as a store would hold; None: one for each epoch."""
    epochs, limit = config.method.epochs, config.debug.max_slots
    return min(epochs, limit) if epochs and limit else epochs or limit


def check(config: Config) -> None:
    """Refuse contradictions before anything runs.

    Raises:
        UserError: naming the key.
    """
    options: TinyViTOptions = config.method
    if distils(config) and config.task.targets != "class":
        raise UserError(
            "TinyViT stores the teacher's class probabilities, which sum to one; it has no form of it for "
            f"task={config.task.name}.",
            "Give method=supervised, or method.distill=false with a recipe to finetune with.",
        )
    if options.online and options.store is not None:
        raise UserError(
            "method.online=true runs the teacher at every step, method.store names stored labels.",
            "Leave one of the two out.",
        )
    if options.store_views is not None:
        if len(options.store_views) != 2 or not 0 <= options.store_views[0] < options.store_views[1]:
            raise UserError(f"method.store_views={options.store_views} is not [START, STOP], counted from 0.")
        if options.store_to is None or not makes_store(config):
            raise UserError(
                "method.store_views stores a part of the views for others to train from.",
                "Give method.store_to=FOLDER, the same in every run that fills it, and a teacher.",
            )
    if not distils(config):
        if options.finetune is None:
            raise UserError(
                "method.distill=false only finetunes, and method.finetune names no recipe.",
                "Choose one: recipe@method.finetune=tinyvit_finetune.",
            )
        if config.model.checkpoint is None and not config.model.pretrained:
            raise UserError(
                "method.distill=false finetunes a network that was trained before.",
                "Give model.checkpoint=FILE or FOLDER, or model.pretrained=true.",
            )
    if makes_teacher(config) and not config.teacher.members:
        raise UserError(
            "TinyViT needs a teacher, and teacher=none has no members.", "Choose one: mode=list group=teacher."
        )

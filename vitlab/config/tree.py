"""The typed configuration tree: every key, its type and its meaning.

Numbers stand in ``conf/*.yaml``; a field without a default here must be given there. Nothing in this module
computes with the values except :func:`to_steps`, which turns a duration such as ``"90ep"`` into optimiser steps.

This module must stay free of torch: the command line reads it to answer typos.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

MISSING: Any = "???"
"""OmegaConf's mark of a value that ``conf/`` must give; its package would double the time of ``--help``."""


@dataclass
class ModelConfig:
    """A network: any timm model, from scratch, pretrained, or from a file."""

    name: str = MISSING  # timm model name, e.g. tiny_vit_5m_224
    pretrained: bool = False  # timm's own weights (hub download)
    checkpoint: Optional[str] = None  # .pth, .safetensors, a vitlab model folder, or a run: its result
    args: dict[str, Any] = field(default_factory=dict)  # of timm.create_model; absent_class, table_resize: of loading
    mean: Optional[list[float]] = None  # normalisation; null: the pretrained model's, else the dataset's
    std: Optional[list[float]] = None  # see mean

    FIRST: ClassVar[tuple[str, ...]] = (
        *("name", "pretrained", "checkpoint", "args", "mean", "std", "absent_class", "table_resize"),
    )
    """For the names of folders that hold a model's results (:func:`vitlab.files.stable_dict`)."""


@dataclass
class DatasetConfig:
    """Images with labels, and how large a network sees them."""

    name: str = MISSING  # a module of vitlab/data/sets: digits, cifar10, imagenet, folder, ...
    root: Optional[str] = None  # folder with the data; null: $VITLAB_DATA/<name>
    size: Any = MISSING  # of the view, in pixels: the side of a square, or [height,width]
    mean: list[float] = MISSING  # per channel, in [0, 1]
    std: list[float] = MISSING  # per channel
    labels_per_class: Optional[int] = None  # keep this many training images of each class (seeded, stratified)
    crop_pct: float = 0.875  # evaluation: resize the short side to size/crop_pct, then centre crop; 1.0: see crop
    crop: str = "auto"  # evaluation: center, squash (resize both sides, cut nothing), or auto: squash at crop_pct=1
    download: bool = False  # fetch with torchvision if missing
    csv: Optional[str] = None  # folder only: CSV with columns path,label[,split][,group]
    leave_out: Optional[str] = None  # folder only: text file of images to leave out, one path a line
    val_fraction: float = 0.0  # share of every class of train held out as val where there is no val split; 0: none
    folds: Optional[int] = None  # cross-validation: split all images into so many folds, by a hash; null: none
    fold: Optional[int] = None  # with folds: the fold that is the test split, 0 to folds - 1
    split_file: Optional[str] = None  # CSV path,split that says where each image belongs, as runs write it
    classes: Any = None  # folder only: their order, a list; listed: a CSV's; null: classes.txt, else the alphabet
    embedded: bool = False  # comes with vitlab or a package: no folder is needed
    synthetic: bool = False  # made-up images: reports say that the numbers mean nothing
    length: int = 256  # fake only: training images (a quarter as many for testing)
    num_classes: int = 10  # fake only
    targets: Optional[str] = "class"  # see task.targets; null: the CSV of dataset=folder decides

    FIRST: ClassVar[tuple[str, ...]] = (
        *("name", "root", "size", "mean", "std", "labels_per_class", "crop_pct", "crop", "download", "csv"),
        *("leave_out", "val_fraction", "length", "num_classes"),
    )
    """As in :class:`ModelConfig`."""


@dataclass
class AugmentationConfig:
    """What may be drawn for a training view (vitlab.distill.draw.Augmentation)."""

    crop_scale: Optional[list[float]] = None  # random resized crop: area range; null: resize the whole image
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # of the crop: width to height
    flip: float = 0.0  # probability of a horizontal flip
    vertical_flip: float = 0.0  # probability of a vertical flip
    randaug: Optional[str] = None  # timm's notation, e.g. rand-m9-mstd0.5-inc1
    color_jitter: Optional[list[float]] = None  # brightness, contrast, saturation; only without randaug
    erase: float = 0.0  # probability of random erasing
    erase_mode: str = "pixel"  # pixel | rand | const
    mixup: float = 0.0  # Beta parameter; 0: off
    cutmix: float = 0.0  # Beta parameter; 0: off
    mix_prob: float = 1.0  # probability that a pair is mixed at all
    mix_switch: float = 0.5  # probability of CutMix where both are on
    interpolation: str = "bicubic"  # nearest | bilinear | bicubic


@dataclass
class RecipeConfig:
    """How a network is trained. Durations carry a unit: 90ep, 5000st, 10%."""

    duration: str = MISSING  # length of the training
    batch_size: int = MISSING  # global: over all devices and accumulation steps
    optimizer: str = MISSING  # any timm optimiser: adamw, sgd, lamb, ...
    lr: float = MISSING  # peak learning rate at this batch size
    weight_decay: float = MISSING  # of weight matrices and kernels; never of norms, biases and position tables
    optimizer_args: dict[str, Any] = field(default_factory=dict)  # betas, eps, momentum, ...
    schedule: str = "cosine"  # cosine | cosine_after (the warm-up, counted from there) | linear | step | constant
    warmup: str = "0st"  # duration over which the learning rate rises from warmup_lr to lr
    warmup_lr: float = 0.0  # learning rate of the first step
    min_lr: float = 0.0  # learning rate of the last step
    decay_at: list[str] = field(default_factory=list)  # step schedule: durations at which lr is multiplied
    decay_rate: float = 0.1  # step schedule: by this factor
    head_lr: float = 1.0  # the classifier's learning rate is lr times this
    balance: str = "none"  # of unequal classes, for training on labels: none | weight | sampler | logit_adjust
    freeze_batchnorm: bool = False  # running statistics stay as they are; scales and shifts still learn
    layer_decay: float = 1.0  # lr of each earlier layer group is multiplied by this once more; 1: off
    clip: Optional[float] = None  # global gradient norm
    accumulate: int = 1  # micro-batches per optimiser step
    label_smoothing: float = 0.0  # share of a label spread over all classes
    ema: Optional[float] = None  # decay of the weight average; null: off
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    validate_every: str = "1ep"  # duration between validations
    checkpoint_every: str = "1ep"  # duration between checkpoints


@dataclass
class TeacherConfig:
    """Who labels the views: one network or several (an ensemble averages probabilities)."""

    members: list[ModelConfig] = field(default_factory=list)
    weights: Optional[list[float]] = None  # of the members; null: equal
    sizes: Optional[list[Any]] = None  # of each member's input, views are resized; null: dataset.size
    temperature: float = 1.0  # the teacher's logits are divided by it
    train: bool = False  # train the (single) member on the data set first, with teacher.recipe
    recipe: Optional[RecipeConfig] = None  # how it is trained; choose with recipe@teacher.recipe=NAME


@dataclass
class TaskConfig:
    """What the network answers."""

    name: str = MISSING  # classification | multilabel
    targets: str = "class"  # what an image is labelled with: class (one number), or labels (any number of them)
    pos_weight: Any = None  # multilabel: weight of a label that is there; a number, a list, balanced, or null: 1


@dataclass
class HardwareConfig:
    """How to run; never what comes out. The group also fills Lightning's ``trainer.*``."""

    name: str = MISSING  # auto | cpu | gpu | mps | ddp | ddp_cpu | fsdp | slurm
    workers: Optional[int] = None  # loader processes per device; null: one per free core, none for data in memory
    threads: Optional[int] = None  # CPU threads of the main process; null: torch's choice
    compile: bool = False  # torch.compile the student


@dataclass
class TrainerConfig:
    """Lightning's Trainer, the part that hardware decides; any of it can be given key by key."""

    accelerator: str = "auto"  # auto | cpu | gpu | mps
    devices: Any = 1  # how many, or which: 2, [0,1], auto; one process each
    num_nodes: int = 1  # machines
    strategy: str = "auto"  # how devices work together: auto, ddp, fsdp (weights shared out)
    precision: str = "32-true"  # 32-true | bf16-mixed | 16-mixed
    sync_batchnorm: bool = False  # several GPUs: BatchNorm's statistics over the global batch


@dataclass
class LoggerConfig:
    """Copies of metrics.jsonl for other eyes."""

    name: str = "local"  # local | csv | tensorboard | wandb
    every: int = 20  # training steps between two records
    project: str = "vitlab"  # wandb only
    offline: Optional[bool] = None  # wandb; null: offline when there is no key
    tags: list[str] = field(default_factory=list)  # wandb only
    predictions: int = 64  # wandb only: test images in the table of predictions of each model
    upload_mb: int = 256  # wandb only: artifacts above this many MiB are named by their place, not uploaded


@dataclass
class EvaluationConfig:
    """What is measured at the end."""

    batch_size: int = 256  # images at once
    bins: int = 15  # of the reliability diagram and the expected calibration error
    resamples: int = 1000  # of the bootstrap behind intervals and comparisons; 0: no intervals
    temperature: bool = True  # fit one on validation images and say what it mends
    latency: bool = True  # measure seconds per batch
    latency_batches: list[int] = field(default_factory=lambda: [1, 32])  # batch sizes that are timed
    latency_repeats: int = 30  # timed batches of each size
    corruptions: list[str] = field(default_factory=list)  # of ImageNet-C, made on the fly: names, families, all
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])  # of the corruptions
    shifted: list[str] = field(default_factory=list)  # val v2 v2_threshold v2_top a r sketch objectnet c, or all
    shifted_root: Optional[str] = None  # folder that holds the shifted sets; null: $VITLAB_DATA
    robust_images: Optional[int] = None  # at most so many of a corruption or shifted set, classes in turn; null: all


@dataclass
class ExportConfig:
    """Files that others can load."""

    formats: list[str] = field(default_factory=lambda: ["safetensors", "onnx"])  # + timm, hub, onnx_int8, torch_export
    tolerance: float = 1e-4  # largest allowed |exported - torch| of a logit; of onnx_int8 the accuracy is measured
    push: Optional[str] = None  # with hub, in mode=export: upload to this repository, USER/NAME (made private)


@dataclass
class DebugConfig:
    """Cuts, to see every stage pass quickly, and questions to a training."""

    name: str = "none"  # none | smoke | profile | overfit
    max_steps: Optional[int] = None  # cut every training to this many steps
    max_images: Optional[int] = None  # cut every split to this many images
    max_slots: Optional[int] = None  # cut every store to this many views per image
    profile: Optional[int] = None  # of every training, time so many steps and say where the time goes
    overfit: Optional[float] = None  # learn the few images by heart; the loss this near the least possible: it can


@dataclass
class PaperConfig:
    """A published row that stands in the report beside the run's result; chosen with paper=NAME."""

    name: Optional[str] = None  # the row, e.g. TinyViT-5M, 300 epochs; null: none
    source: str = ""  # where it stands, e.g. Wu et al. 2022, main table
    dataset: str = "imagenet"  # shown only beside a run on it,
    model: str = ""  # of this network (model.name),
    size: int = 224  # at this size in pixels
    top1: Optional[float] = None  # percent
    top5: Optional[float] = None  # percent
    params: Optional[float] = None  # millions
    macs: Optional[float] = None  # thousand millions, one image


@dataclass
class BenchmarkConfig:
    """What mode=benchmark runs side by side."""

    models: list[str] = field(default_factory=list)  # more models: timm names, conf/model names, model folders
    backends: list[str] = field(default_factory=lambda: ["eager", "onnxruntime"])  # also compile, openvino


@dataclass
class PredictConfig:
    """How mode=predict answers."""

    topk: int = 5  # classes named for each image
    format: str = "table"  # table | jsonl | csv
    output: Optional[str] = None  # file to write to; null: the screen
    pictures: Optional[str] = None  # folder for annotated pictures; null: none
    calibrated: bool = True  # divide the logits by the temperature that mode=evaluate fitted, where there is one


@dataclass
class ExplainConfig:
    """What mode=explain shows."""

    methods: list[str] = field(default_factory=lambda: ["gradcam", "rollout"])  # and those that the network declares
    images: int = 8  # of the test split, where no input= is given
    target: str = "predicted"  # the class that Grad-CAM explains: predicted, label, or a class's name
    layer: Optional[str] = None  # module that Grad-CAM reads; null: the last one that has places
    sanity: bool = True  # randomise the weights and show what is left of the maps


@dataclass
class ReportConfig:
    """The page of a run."""

    figures: bool = True  # draw them; false: tables and words only, for sweeps of many runs (mode=report draws later)


@dataclass
class SweepConfig:
    """Several runs of one command: -m and key=a,b; with sweep=optuna also key=interval(a,b)."""

    jobs: int = 1  # runs at once
    name: Optional[str] = None  # folder of the comparison below OUTPUT/sweeps; null: from the runs
    over: list[str] = field(default_factory=list)  # swept keys as words of the prompt, e.g. ["seed=0,1,2"]
    sampler: str = "grid"  # grid: every combination; a search: tpe | random | nsga2
    trials: int = 1  # search: runs to finish or prune, earlier sessions counted
    startup: int = 0  # search: trials drawn at random, and not pruned, before it learns from them
    maximize: list[str] = field(default_factory=list)  # search: metrics of report or record; neither given: val_top1
    minimize: list[str] = field(default_factory=list)  # search: likewise; two metrics in all: the Pareto front
    prune: Optional[str] = None  # search for one metric: end bad trials early, by median | halving; null: never


@dataclass
class SlurmConfig:
    """What hardware=slurm asks the queue for, beside trainer.devices and trainer.num_nodes."""

    executor: str = "slurm"  # slurm, or local: a background job of this machine, to try it out
    minutes: int = 1440  # longest time of the job; a run that is not through then is saved and queued anew
    partition: Optional[str] = None  # of the cluster; null: its default
    account: Optional[str] = None  # who pays
    qos: Optional[str] = None  # quality of service
    constraint: Optional[str] = None  # what the machines must have, e.g. a100
    memory: Optional[int] = None  # gigabytes of each machine; null: the cluster's default
    cpus: int = 8  # CPU cores for each device
    warning: int = 120  # seconds before its end in which the job saves
    requeues: int = 20  # times that a job whose time was up is queued anew
    extra: dict[str, Any] = field(default_factory=dict)  # further options of sbatch: slurm.extra.exclude=node7


@dataclass
class AuditConfig:
    """The look at a folder of your own images."""

    before_training: bool = True  # a training with dataset=folder looks first, and stops at a fault


@dataclass
class Config:
    """The whole tree. ``method`` is typed by the method's own ``Options`` dataclass."""

    mode: str = "train"  # train | evaluate | benchmark | predict | explain | export | audit | report | check | list
    run: Any = None  # a run's folder or name, one of its models (RUN/STAGE), a list of these, or a glob
    input: Any = None  # images for a mode: file, folder, glob, a list of these, or - for names from stdin
    seed: int = 0  # of everything random: weights, order, augmentation, which labels are kept
    name: Optional[str] = None  # readable part of the run's name; null: dataset-model
    output: str = "outputs"  # where run folders are made
    fresh: bool = False  # start a numbered sibling of a run that exists
    only: Optional[str] = None  # run this stage of the method and the stages that it needs; null: the method's all
    method: Any = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    paper: PaperConfig = field(default_factory=PaperConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ep|st|%)\s*")


def to_steps(duration: str, steps_per_epoch: int, total: int | None = None) -> int:
    """Optimiser steps in ``duration``: ``"90ep"`` epochs, ``"5000st"`` steps, ``"10%"`` of ``total`` steps.

    Raises:
        ValueError: if the unit is missing or unknown, or a percentage is used where there is no total.
    """
    match = _DURATION.fullmatch(str(duration))
    if match is None:
        raise ValueError(f"'{duration}' is not a duration; write epochs as 90ep, steps as 5000st, a share as 10%")
    value, unit = float(match[1]), match[2]
    if unit == "%":
        if total is None:
            raise ValueError(f"'{duration}': a share needs a whole; write epochs as 90ep or steps as 5000st")
        return round(value / 100 * total)
    return round(value * steps_per_epoch) if unit == "ep" else round(value)

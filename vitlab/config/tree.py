"""The typed configuration tree: every key, its type and its meaning.

The comment beside a field is its help text. Values are in ``conf/*.yaml``; a field without a default here must be given
there. :func:`to_steps` converts a duration such as ``"90ep"`` into optimiser steps.

No torch: the command line reads this module to check the keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from vitlab.config.ranges import number

MISSING: Any = "???"
"""OmegaConf's marker of a required value; importing it from OmegaConf would double the time of ``--help``."""


@dataclass
class ModelConfig:
    """A network: any timm model, from scratch, pretrained, or from a file."""

    name: str = MISSING  # timm model name, e.g. tiny_vit_5m_224
    pretrained: bool = False  # load timm's pretrained weights (downloaded)
    checkpoint: Optional[str] = None  # .pth or .safetensors file, model folder, or run (its result)
    args: dict[str, Any] = field(default_factory=dict)  # of timm.create_model; absent_class, table_resize: of loading
    mean: Optional[list[float]] = number(None, -1e3, 1e3)  # normalisation; null: pretrained model's or dataset's
    std: Optional[list[float]] = number(None, 0, 1e3, open_low=True)  # see mean

    FIRST: ClassVar[tuple[str, ...]] = (*("name", "pretrained", "checkpoint", "args", "mean", "std"),)
    """Fields of the first version, for names of folders with a model's results (:func:`vitlab.files.stable_dict`)."""
    FORMER: ClassVar[dict[str, str]] = {"absent_class": "mean", "table_resize": "official"}
    """Fields of the first version that are gone, with their neutral values, likewise."""


@dataclass
class DatasetConfig:
    """Labelled images, their splits and their input size."""

    name: str = MISSING  # a module of vitlab/data/sets: digits, cifar10, imagenet, folder, ...
    root: Optional[str] = None  # folder with the data; null: $VITLAB_DATA/<name>
    size: Any = MISSING  # network input in pixels: the side of a square, or [height,width]
    mean: list[float] = number(MISSING, -1e3, 1e3)  # normalisation: mean of each channel, in [0, 1]
    std: list[float] = number(MISSING, 0, 1e3, open_low=True)  # normalisation: standard deviation of each channel
    labels_per_class: Optional[int] = number(None, 1, 10**9)  # training images per class, drawn by seed; null: all
    crop_pct: float = number(0.875, 0, 1, open_low=True)  # evaluation: short side size/crop_pct, 1.0: see crop
    crop: str = "auto"  # evaluation: center | squash (both sides, no crop) | squash_crop | auto (squash if crop_pct=1)
    download: bool = False  # download with torchvision if the data are missing
    csv: Optional[str] = None  # folder only: CSV with columns path,label[,split][,group]
    columns: dict[str, str] = field(default_factory=dict)  # names in the CSV: {path:filename,label:species}
    max_pixels: int = number(178_956_970, 1, 10**12)  # images of more pixels are refused, against decompression bombs
    leave_out: Optional[str] = None  # folder only: text file of images to exclude, one path per line
    val_fraction: float = number(0.0, 0, 1, open_high=True)  # held out of train if there is no val; 0: none
    folds: Optional[int] = number(None, 2, 10**6)  # cross-validation: folds, by a hash of the image; null: none
    fold: Optional[int] = number(None, 0, 10**6)  # cross-validation: the fold used as test split, from 0 to folds - 1
    split_file: Optional[str] = None  # CSV with columns path,split, e.g. splits.csv of a run; null: the data set's own
    groups: Optional[str] = None  # folder only: CSV path,group, e.g. duplicates.csv of an audit: not split apart
    classes: Any = None  # folder only: order, a list | listed (order of the CSV); null: classes.txt, else sorted
    embedded: bool = False  # part of a Python package: needs no root
    synthetic: bool = False  # random images: reports mark their metrics as meaningless
    length: int = number(256, 1, 10**9)  # fake only: training images (a quarter as many test images)
    num_classes: int = number(10, 2, 10**6)  # fake only: classes
    targets: Optional[str] = "class"  # see task.targets; null: as the CSV of dataset=folder

    FIRST: ClassVar[tuple[str, ...]] = (
        *("name", "root", "size", "mean", "std", "labels_per_class", "crop_pct", "crop", "download", "csv"),
        *("leave_out", "val_fraction", "length", "num_classes"),
    )
    """As in :class:`ModelConfig`."""


@dataclass
class AugmentationConfig:
    """Random augmentation of a training view (vitlab.distill.draw.Augmentation)."""

    crop_scale: Optional[list[float]] = None  # random resized crop: range of the area; null: resize the full image
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # random resized crop: aspect ratios
    flip: float = 0.0  # probability of a horizontal flip
    vertical_flip: float = 0.0  # probability of a vertical flip
    randaug: Optional[str] = None  # RandAugment: timm's rand-m9-mstd0.5-inc1, or torchvision-m9-n2; null: off
    color_jitter: Optional[list[float]] = None  # strength of brightness, contrast, saturation; only without randaug
    erase: float = 0.0  # probability of random erasing
    erase_mode: str = "pixel"  # random erasing: fill with pixel | rand | const (mean colour) | black
    mixup: float = 0.0  # MixUp: Beta parameter; 0: off
    cutmix: float = 0.0  # CutMix: Beta parameter; 0: off
    mix_prob: float = 1.0  # MixUp, CutMix: probability that a pair is mixed
    mix_switch: float = 0.5  # MixUp, CutMix: probability of CutMix if both are on
    interpolation: str = "bicubic"  # resize filter: nearest | bilinear | bicubic


@dataclass
class RecipeConfig:
    """Optimisation of a training. Durations have a unit: 90ep (epochs), 5000st (steps), 10% (of duration)."""

    duration: str = MISSING  # length of the training
    batch_size: int = number(MISSING, 1, 10**7)  # global batch size: over all devices and accumulation steps
    optimizer: str = MISSING  # any timm optimiser: adamw, sgd, lamb, ...
    lr: float = number(MISSING, 0, 1e30, open_low=True)  # peak learning rate at this batch size
    weight_decay: float = number(MISSING, 0, 1e6)  # weight decay; not applied to norms, biases and position tables
    decay_norms: bool = False  # apply weight decay to norms, biases and position tables, too
    optimizer_args: dict[str, Any] = field(default_factory=dict)  # optimiser arguments: betas, eps, momentum, ...
    schedule: str = "cosine"  # cosine | cosine_after (cosine over the steps after warm-up) | linear | step | constant
    schedule_compat: str = "vitlab"  # vitlab | official (TinyViT's code: the rate of a step is that of the one before)
    warmup: str = "0st"  # duration of the linear warm-up from warmup_lr to lr
    warmup_lr: float = number(0.0, 0, 1e30)  # learning rate of the first step
    min_lr: float = number(0.0, 0, 1e30)  # learning rate of the last step
    decay_at: list[str] = field(default_factory=list)  # step schedule: durations at which lr is decayed
    decay_rate: float = number(0.1, 0, 1)  # step schedule: factor of lr
    head_lr: float = number(1.0, 0, 1e6, open_low=True)  # factor of lr for the classifier
    balance: str = "none"  # class imbalance, for label losses: none | weight | sampler | logit_adjust
    freeze_batchnorm: bool = False  # freeze the running statistics of BatchNorm; its weights and biases are trained
    layer_decay: float = number(1.0, 0, 1, open_low=True)  # factor of lr per layer group towards the input; 1: off
    clip: Optional[float] = number(None, 0, 1e9, open_low=True)  # maximum global gradient norm; null: no clipping
    accumulate: int = number(1, 1, 10**7)  # gradient accumulation: micro-batches per optimiser step
    label_smoothing: float = number(0.0, 0, 1, open_high=True)  # label smoothing of the cross-entropy
    ema: Optional[float] = number(None, 0, 1, open_low=True, open_high=True)  # decay of averaged weights; null: off
    ema_warmup: bool = False  # let the decay of the average rise to ema over the first steps, for short trainings
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    validate_every: str = "1ep"  # duration between validations
    checkpoint_every: str = "1ep"  # duration between checkpoints


@dataclass
class TeacherConfig:
    """Teacher of a distillation: one network, or an ensemble whose probabilities are averaged."""

    members: list[ModelConfig] = field(default_factory=list)
    weights: Optional[list[float]] = number(None, 0, 1e6)  # weights of the members; null: equal
    sizes: Optional[list[Any]] = None  # input size of each member in pixels; views are resized; null: dataset.size
    temperature: float = number(1.0, 0, 1e6, open_low=True)  # softmax temperature of the teacher
    train: bool = False  # train the only member on the data set first, with teacher.recipe
    recipe: Optional[RecipeConfig] = None  # recipe of that training; choose with recipe@teacher.recipe=NAME


@dataclass
class TaskConfig:
    """What the network predicts."""

    name: str = MISSING  # classification | multilabel
    targets: str = "class"  # labels of an image: class (exactly one) | labels (any number)
    pos_weight: Any = None  # multilabel: weight of positive labels, a number | list | balanced; null: 1


@dataclass
class HardwareConfig:
    """Devices and speed, without effect on the results. The group also sets ``trainer.*``."""

    name: str = MISSING  # auto | cpu | gpu | mps | ddp | ddp_cpu | fsdp | slurm
    workers: Optional[int] = number(None, 0, 1024)  # loaders per device; null: one per free core, 0 in memory
    threads: Optional[int] = number(None, 1, 4096)  # CPU threads of torch; null: torch's default
    compile: bool = False  # apply torch.compile to the student


@dataclass
class TrainerConfig:
    """Arguments of Lightning's Trainer that depend on the hardware."""

    accelerator: str = "auto"  # auto | cpu | gpu | mps
    devices: Any = 1  # number of devices, their indices, or auto (all): 2, [0,1]; one process per device
    num_nodes: int = number(1, 1, 10**5)  # number of nodes
    strategy: str = "auto"  # auto | ddp | fsdp (sharded weights)
    precision: str = "32-true"  # 32-true | bf16-mixed | 16-mixed
    sync_batchnorm: bool = False  # synchronise BatchNorm's statistics over all GPUs


@dataclass
class LoggerConfig:
    """Loggers that copy the record in metrics.jsonl."""

    name: str = "local"  # local | csv | tensorboard | wandb
    also: list[str] = field(default_factory=list)  # further loggers beside the chosen one, e.g. [csv,tensorboard]
    every: int = number(20, 1, 10**9)  # training steps between two logged rows
    project: str = "vitlab"  # wandb only: project
    offline: Optional[bool] = None  # wandb only: do not upload; null: offline if there is no API key
    tags: list[str] = field(default_factory=list)  # wandb only: tags of the run
    predictions: int = number(64, 0, 10**6)  # wandb only: test images in each model's table of predictions
    upload_mb: int = number(256, 0, 10**9)  # wandb only: artifacts above this size in MiB are referenced, not uploaded

    @property
    def names(self) -> list[str]:
        """All loggers, each once."""
        return list(dict.fromkeys([self.name, *self.also]))


@dataclass
class EvaluationConfig:
    """Metrics, calibration, latency and robustness of the trained models."""

    batch_size: int = number(256, 1, 10**7)  # batch size of the evaluation
    bins: int = number(15, 1, 10**4)  # bins of the reliability diagram and of the expected calibration error
    resamples: int = number(1000, 0, 10**6)  # bootstrap resamples of confidence intervals and comparisons; 0: none
    temperature: bool = True  # fit a softmax temperature on validation images and report its effect
    latency: bool = True  # measure the latency of inference
    latency_batches: list[int] = number([1, 32], 1, 10**7)  # batch sizes of the latency measurement
    latency_repeats: int = number(30, 1, 10**6)  # timed batches per batch size
    corruptions: list[str] = field(default_factory=list)  # ImageNet-C corruptions, on the fly: names, families, or all
    severities: list[int] = number([1, 2, 3, 4, 5], 1, 5)  # severities of the corruptions, 1 to 5
    shifted: list[str] = field(default_factory=list)  # val v2 v2_threshold v2_top a r sketch objectnet c, or all
    shifted_root: Optional[str] = None  # folder of the shifted test sets; null: $VITLAB_DATA
    robust_images: Optional[int] = number(None, 1, 10**9)  # per corruption or shifted set, over all classes; null: all


@dataclass
class ExportConfig:
    """Files exported from the result."""

    formats: list[str] = field(default_factory=lambda: ["safetensors", "onnx"])  # also timm hub onnx_int8 torch_export
    tolerance: float = number(1e-4, 0, 1e9)  # maximum |exported - torch| of a logit, not for onnx_int8
    push: Optional[str] = None  # with hub, in mode=export: upload to the repository USER/NAME (created as private)


@dataclass
class DebugConfig:
    """Shortened runs, profiling, overfitting a few images."""

    name: str = "none"  # none | smoke | profile | overfit
    max_steps: Optional[int] = number(None, 1, 10**9)  # maximum optimiser steps of every training
    max_images: Optional[int] = number(None, 1, 10**9)  # maximum images of every split
    max_slots: Optional[int] = number(None, 1, 10**9)  # maximum views per image of every store
    profile: Optional[int] = number(None, 1, 10**6)  # profile this many steps of every training
    overfit: Optional[float] = number(None, 0, 1e9, open_low=True)  # passed if the loss is this near its minimum


@dataclass
class PaperConfig:
    """A published result that the report shows beside the run's; chosen with paper=NAME."""

    name: Optional[str] = None  # name of the row, e.g. TinyViT-5M, 300 epochs; null: none
    source: str = ""  # where it is published, e.g. Wu et al. 2022, main table
    dataset: str = "imagenet"  # shown only for runs on this data set,
    model: str = ""  # with this network (model.name),
    size: int = number(224, 1, 10**5)  # at this input size in pixels
    top1: Optional[float] = number(None, 0, 100)  # top-1 accuracy in percent
    top5: Optional[float] = number(None, 0, 100)  # top-5 accuracy in percent
    params: Optional[float] = number(None, 0, 1e9)  # parameters in millions
    macs: Optional[float] = number(None, 0, 1e9)  # multiply-adds of one image in units of 1e9


@dataclass
class BenchmarkConfig:
    """Models and backends of mode=benchmark."""

    models: list[str] = field(default_factory=list)  # further models: timm names, names in conf/model, model folders
    backends: list[str] = field(default_factory=lambda: ["eager", "onnxruntime"])  # eager compile onnxruntime openvino


@dataclass
class PredictConfig:
    """Output of mode=predict."""

    topk: int = number(5, 1, 10**6)  # classes per image
    format: str = "table"  # table | jsonl | csv
    output: Optional[str] = None  # output file; null: stdout
    pictures: Optional[str] = None  # folder for annotated images; null: none
    calibrated: bool = True  # apply the temperature fitted by mode=evaluate, if there is one


@dataclass
class ExplainConfig:
    """Saliency maps of mode=explain."""

    methods: list[str] = field(default_factory=lambda: ["gradcam", "rollout"])  # and those that the network declares
    images: int = number(8, 1, 10**6)  # test images, if input= is not given
    target: str = "predicted"  # class explained by Grad-CAM: predicted | label | name of a class
    layer: Optional[str] = None  # module for Grad-CAM; null: the last one with spatial output
    sanity: bool = True  # model randomisation test of the maps


@dataclass
class ReportConfig:
    """Report of a run."""

    figures: bool = True  # draw figures; false: text and tables only, for large sweeps (mode=report draws them later)


@dataclass
class SweepConfig:
    """Several runs of one command: -m with key=a,b; with sweep=optuna also key=interval(a,b)."""

    jobs: int = number(1, 1, 10**4)  # runs in parallel
    name: Optional[str] = None  # folder of the comparison below OUTPUT/sweeps; null: a hash of the runs
    over: list[str] = field(default_factory=list)  # swept keys as overrides, e.g. ["seed=0,1,2"]
    sampler: str = "grid"  # grid (all combinations), or a search: tpe | random | nsga2
    trials: int = number(1, 1, 10**6)  # search: number of trials, with those of earlier sessions
    startup: int = number(0, 0, 10**6)  # search: random trials before the sampler and the pruner start
    maximize: list[str] = field(default_factory=list)  # search: metrics of report or record; default val_top1
    minimize: list[str] = field(default_factory=list)  # search: as maximize; two metrics in all: multi-objective
    prune: Optional[str] = None  # search with one metric: pruner, median | halving; null: none


@dataclass
class SlurmConfig:
    """Resources of the job with hardware=slurm, besides trainer.devices and trainer.num_nodes."""

    executor: str = "slurm"  # slurm | local (a background job on this machine, for tests)
    minutes: int = number(1440, 1, 10**6)  # time limit of the job; an unfinished run is saved and requeued
    partition: Optional[str] = None  # SLURM partition; null: the cluster's default
    account: Optional[str] = None  # SLURM account; null: the user's default
    qos: Optional[str] = None  # SLURM quality of service; null: the default
    constraint: Optional[str] = None  # features that the nodes must have, e.g. a100
    memory: Optional[int] = number(None, 1, 10**6)  # memory per node in GB; null: the cluster's default
    cpus: int = number(8, 1, 10**4)  # CPU cores per device
    warning: int = number(120, 1, 10**6)  # seconds before the time limit at which the job saves
    requeues: int = number(20, 0, 10**6)  # maximum number of requeues after the time limit
    extra: dict[str, Any] = field(default_factory=dict)  # further options of sbatch: slurm.extra.exclude=node7


@dataclass
class AuditConfig:
    """Audit of the images of dataset=folder."""

    before_training: bool = True  # audit before a training with dataset=folder, and stop on errors


@dataclass
class Config:
    """The full configuration. ``method`` has the type of the method's ``Options`` dataclass."""

    mode: str = "train"  # train | evaluate | benchmark | predict | explain | export | audit | report | check | list
    run: Any = None  # folder or name of a run, one of its models (RUN/STAGE), a list of these, or a glob
    input: Any = None  # images for a mode: file, folder, glob, a list of these, or - (names from stdin)
    seed: int = number(0, 0, 2**31 - 1)  # random seed of weights, order, augmentation and subsets
    name: Optional[str] = None  # prefix of the run's name; null: dataset-model
    output: str = "outputs"  # folder of the runs
    fresh: bool = False  # start another run beside an existing one
    only: Optional[str] = None  # run only this stage and the stages it needs; null: all stages
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


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ep|st|%)\s*", re.ASCII)


def to_steps(duration: str, steps_per_epoch: int, total: int | None = None) -> int:
    """Optimiser steps of ``duration``: ``"90ep"`` epochs, ``"5000st"`` steps, ``"10%"`` of ``total`` steps.

    Raises:
        ValueError: the unit is missing or unknown, or a percentage without ``total``.
    """
    match = _DURATION.fullmatch(str(duration))
    if match is None:
        raise ValueError(f"'{duration}' is not a duration; write epochs as 90ep, steps as 5000st, a percentage as 10%")
    value, unit = float(match[1]), match[2]
    if unit == "%":
        if total is None:
            raise ValueError(f"'{duration}': a percentage needs a total; write epochs as 90ep or steps as 5000st")
        return round(value / 100 * total)
    return round(value * steps_per_epoch) if unit == "ep" else round(value)

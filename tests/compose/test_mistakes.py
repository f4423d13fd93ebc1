"""Mistakes on the command line: a short paragraph with key, possible values and most similar name; exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitlab.cli.main import main, paragraph

CASES: list[tuple[str, list[str]]] = [
    # mistyped keys
    ("recipe.lrr=1", ["recipe.lrr", "Did you mean recipe.lr=1?", "a number", "peak learning rate"]),
    ("lr=0.1", ["Did you mean recipe.lr=0.1?"]),
    ("epochs=10", ["Did you mean recipe.duration=10ep?"]),
    ("max_steps=10", ["Did you mean recipe.duration=10st?"]),
    ("recpie.lr=1", ["Did you mean recipe.lr=1?"]),
    ("recipe.mixup=0.8", ["Did you mean recipe.augmentation.mixup=0.8?"]),
    ("teacher.members.0.nam=x", ["Did you mean teacher.members.0.name=x?"]),
    ("model.arg.drop_path_rate=0.1", ["Did you mean model.args.drop_path_rate=0.1?"]),
    ("method.topkk=3", ["Did you mean method.topk=3?"]),
    ("gpus=2", ["trainer.devices=2"]),
    ("device=cuda", ["Did you mean hardware=gpu?"]),
    ("dataset.foo=1", ["The keys of dataset are: name, root, size"]),
    ("resume=true", ["The same command continues"]),
    ("recipe={lrr:1}", ["recipe.lrr", "Did you mean recipe.lr="]),
    # +added keys
    ("+typo=1", ["+typo=1", "The top-level keys are", "recipe"]),
    ("+recipe.typo=1", ["The keys of recipe are", "duration"]),
    ("++recipe.lr=1", ["Write it without plus: recipe.lr=1"]),
    ("+model=resnet50", ["Write it without plus: model=resnet50"]),
    ("~recipe.clip", ["recipe.clip=null"]),
    # values of the wrong type
    ("recipe.lr=fast", ["'fast' is not a number", "peak learning rate"]),
    ("recipe.lr=", ["the value after the equals sign is missing"]),
    ("recipe.lr=null", ["'null' is not a number"]),
    ("recipe.batch_size=64.5", ["'64.5' is not a whole number"]),
    ("fresh=maybe", ["'maybe' is not true or false"]),
    ("audit.before_training=2", ["'2' is not true or false"]),
    ("evaluation.corruptions=[[a]]", ["evaluation.corruptions takes a list of words"]),
    ("recipe.augmentation.crop_ratio=[[1]]", ["recipe.augmentation.crop_ratio takes a list of numbers"]),
    ("method=deepmad method.start=[[1],[[2]]]", ["method.start takes"]),
    ("dataset.size=100000", ["100000 pixels are too many", "at most 32768"]),
    ("teacher.sizes=[99999]", ["99999 pixels are too many"]),
    ("recipe.duration=３ep", ["'３ep' is not a duration"]),
    # of methods, in any mode
    ("method.prob_dtype=f8", ["'f8' is none of f2, f4, bf16"]),
    ("method.topk=0", ["method.topk is a whole number from 1"]),
    ("method.replay=exactly", ["cycle, exact", "Did you mean exact?"]),
    ("mode=contract method.contract.steps=0", ["method.contract.steps is a whole number from 1"]),
    ("mode=merge method=reinforce method.backend=pill", ["auto, pil, tensor", "Did you mean pil?"]),
    ("method=reinforce method.p=1.5", ["method.p is a number at least 0 and at most 1"]),
    ("mode=verify method=deepmad method.solver=annealing", ["anneal, milp, evolution"]),
    ("method=deepmad method.chains=0", ["method.chains is a whole number from 1"]),
    ("method=deepmad method.drop_path=1", ["method.drop_path is a number at least 0 and less than 1"]),
    ("recipe.augmentation.crop_scale=0.5", ["is not a list of numbers", "[0.5,1]"]),
    ("recipe.augmentation.crop_scale=[0.5,1", ["brackets"]),
    ("recipe.decay_at=30ep,60ep", ["recipe.decay_at=[30ep,60ep]"]),
    ("teacher.members=3", ["'3' is not a list"]),
    ("teacher.members.1.name=x", ["the first is teacher.members.0"]),
    ("dataset.size=${recipe.foo}", ["there is no key 'recipe.foo'"]),
    # values out of range
    ("recipe.duration=90", ["'90' is not a duration", "Did you mean 90ep or 90st?"]),
    ("recipe.duration=90epochs", ["Did you mean 90ep?"]),
    ("recipe.duration=10%", ["a percentage needs a total"]),
    ("recipe.duration=0ep", ["at least 1st"]),
    ("recipe.schedule=cosin", ["linear, step, constant", "Did you mean cosine?"]),
    ("recipe.batch_size=0", ["a whole number from 1 to 10000000"]),
    ("recipe.batch_size=10 recipe.accumulate=3", ["multiple of recipe.accumulate"]),
    ("recipe.lr=-1", ["larger than 0"]),
    (
        "recipe.augmentation.crop_scale=[0.9,0.1]",
        ["recipe.augmentation.crop_scale=[0.9, 0.1] is out of range", "0 < low <= high <= 1"],
    ),
    ("recipe.augmentation.flip=2", ["recipe.augmentation.flip=2", "a probability in [0, 1]"]),
    ("recipe.augmentation.randaug=foo", ["rand-m9-mstd0.5-inc1"]),
    ("recipe.augmentation.erase_mode=grey", ["recipe.augmentation.erase_mode=grey", "pixel | rand | const"]),
    ("teacher.recipe.augmentation.mixup=-1", ["teacher.recipe.augmentation.mixup=-1", "a Beta parameter"]),
    (
        "recipe@teacher.recipe=finetune teacher.recipe.augmentation.color_jitter=[1,1,1]",
        ["teacher.recipe.augmentation.color_jitter is never run beside teacher.recipe.augmentation.randaug"],
    ),
    ("dataset.crop=centre", ["auto, center, squash, squash_crop", "Did you mean center?"]),
    # recipes and networks inside a method
    ("recipe@method.finetune=digits method.finetune.label_smoothing=7", ["method.finetune.label_smoothing=7"]),
    ("recipe@method.finetune=digits method.finetune.augmentation.flip=7", ["method.finetune.augmentation.flip=7"]),
    ("method=deepmad method.other.checkpoint=/nonexistent.pth", ["method.other.checkpoint=/nonexistent.pth"]),
    ("dataset.mean=[0.5]", ["dataset.mean takes 3 numbers"]),
    ("teacher.weights=[1,2]", ["teacher.weights takes 1 numbers"]),
    ("teacher.recipe=null teacher.recipe.accumulate=2", ["teacher.recipe=null leaves no key below teacher.recipe"]),
    ("teacher.recipe=null", ["a teacher that is trained needs a recipe", "conf/teacher/digits.yaml, line"]),
    ("method.finetune.lr=1", ["method.finetune is empty", "recipe@method.finetune=NAME"]),
    ("method.finetune={lr:1}", ["method.finetune is empty", "recipe@method.finetune=NAME"]),
    ("trainer.precision=bf16", ["Did you mean bf16-mixed?"]),
    ("trainer.devices=two", ["a number of devices"]),
    ("trainer.devices=[-1]", ["a list of their indices"]),
    ("trainer.devices=[0,0]", ["a list of their indices"]),
    ("trainer.devices=[true]", ["a list of their indices"]),
    ("trainer.devices=true", ["a number of devices"]),
    ("trainer.accelerator=tpu", ["auto, cpu, gpu, cuda, mps"]),
    ("export.formats=[onxn]", ["Did you mean onnx?"]),
    ("mode=chekc", ["train, audit, benchmark, evaluate", "check, list", "Did you mean check?"]),
    ("model.checkpoint=/nonexistent.pth", ["no file or folder /nonexistent.pth"]),
    ("seed=-1", ["seed is a whole number from 0 to 2147483647"]),
    ("recipe.lr=inf", ["not a finite number"]),
    ("recipe.lr=1e308", ["recipe.lr=1e308: 1e+308 is out of range", "larger than 0 and at most 1e+30"]),
    ("recipe.decay_rate=-1", ["recipe.decay_rate is a number at least 0 and at most 1"]),
    ("dataset.mean=[0.5,0.5,nan]", ["dataset.mean=[0.5,0.5,nan]: nan is not a finite number"]),
    ("teacher.weights=[nan]", ["teacher.weights=[nan]: nan is not a finite number"]),
    ("teacher.weights=[0]", ["no member has a weight"]),
    ("export.tolerance=nan", ["export.tolerance=nan: nan is not a finite number"]),
    ("evaluation.bins=1000000000", ["1000000000 is too large", "from 1 to 10000"]),
    ("hardware.workers=100000", ["hardware.workers is a whole number from 0 to 1024"]),
    ("model.args.drop_path_rate=2", ["model.args.drop_path_rate=2", "at least 0 and less than 1"]),
    ("recipe.optimizer_args.eps=nan", ["recipe.optimizer_args.eps=nan: nan is not a finite number"]),
    ("recipe.augmentation.flip=nan", ["recipe.augmentation.flip=nan", "not a finite number"]),
    ("recipe@method.finetune=digits method.finetune.decay_rate=3", ["method.finetune.decay_rate=3"]),
    ("teacher.members.0.std=[0,1,1]", ["teacher.members.0.std=[0,1,1]: 0.0 is out of range"]),
    ("seed=99999999999", ["seed is a whole number from 0 to 2147483647"]),
    ("recipe.warmup=20ep", ["a warm-up of 20ep is not shorter than the training of 20ep"]),
    ("recipe.warmup=100%", ["is not shorter than the training"]),
    ("recipe.balance=weights", ["none, weight, sampler, logit_adjust", "Did you mean weight?"]),
    ("recipe.head_lr=0", ["larger than 0"]),
    ("dataset.folds=1 dataset.fold=0", ["a whole number from 2 to 1000000"]),
    ("dataset.folds=3", ["the test fold is not given", "-m dataset.fold=0,1,2"]),
    ("dataset.fold=1", ["the number of folds is not given"]),
    ("dataset.folds=3 dataset.fold=3", ["no fold 3 of 3", "from 0 to 2"]),
    ("dataset.folds=3 dataset.fold=0 dataset.split_file=x.csv", ["dataset.folds splits the images too"]),
    ("dataset.columns={path:file}", ["there is no CSV", "dataset.csv=FILE"]),
    ("dataset.csv=x.csv dataset.columns={pth:file}", ["'pth' is none of path, label", "Did you mean path?"]),
    ("dataset.split_file=none.csv", ["there is no file none.csv"]),
    ("dataset.classes=alphabet", ["'alphabet' is not an order of classes"]),
    ("recipe.schedule_compat=offical", ["vitlab, official", "Did you mean official?"]),
    ("recipe.min_lr=5", ["5 is above recipe.lr, which is 0.003"]),
    ("recipe.validate_every=0ep", ["at least 1st"]),
    ("output=", ["output=FOLDER"]),
    ("output=README.md", ["output=README.md: README.md is a file"]),
    ("mode=evaluate run=x output=README.md/deep/er", ["README.md is a file", "Give a folder"]),
    ("hardware=cpu trainer.precision=16-mixed", ["trainer.precision=16-mixed needs a GPU", "bf16-mixed"]),
    ("model.args={}", ["changes nothing", "model.args.KEY=null"]),
    # choices
    ("model=resnet5", ["there is no model 'resnet5'", "Did you mean model=resnet50", "model.name=resnet5"]),
    ("model=tiny_vit", ["model=tiny_vit_5m or "]),
    ("dataset=mnist", ["There are: cifar10, cifar100, digits", "mode=list group=dataset"]),
    ("hardware=cuda", ["Did you mean hardware=gpu?"]),
    ("modle=resnet50", ["Did you mean model=resnet50?"]),
    ("data=cifar10", ["Did you mean dataset=cifar10?"]),
    ("model=null", ["a run needs a model"]),
    ("model=resnet18,resnet50", ["one run takes one", "put -m first: python -m vitlab -m model=resnet18,resnet50"]),
    ("dataset.name=cifar10", ["Choose another with dataset=cifar10"]),
    ("method.finetune=finetune", ["recipe@method.finetune=finetune"]),
    ("recipe@method.finetune=fintune", ["Did you mean recipe@method.finetune=finetune?"]),
    ("recipe@teacher.recipee=digits", ["Did you mean recipe@teacher.recipe=digits?"]),
    ("method=supervised recipe@method.finetune=digits", ["no recipe is chosen at method.finetune"]),
    # a group that no stage reads, a key of another method
    ("method=supervised teacher=clip_vit_l14", ["no stage of method=supervised reads teacher", "method=tinyvit"]),
    ("method=supervised teacher.temperature=2", ["no stage of method=supervised reads teacher"]),
    ("method=supervised method.topk=3", ["It belongs to method=reinforce and method=tinyvit"]),
    # devices
    ("hardware=ddp_cpu trainer.sync_batchnorm=true", ["on GPUs only"]),
    ("trainer.strategy=fspd", ["auto, ddp, fsdp", "Did you mean fsdp?"]),
    ("hardware=cpu trainer.num_nodes=2", ["no MASTER_ADDR", "NODE_RANK=0 to 1"]),
    ("hardware=ddp_cpu recipe.batch_size=15", ["recipe.batch_size=15 does not divide into 2", "multiple of 2"]),
    (
        "method=supervised hardware=ddp_cpu recipe.batch_size=18 recipe.augmentation.mixup=0.5",
        ["does not divide", "pairs that are mixed", "multiple of 4"],
    ),
    ("slurm.executor=pbs", ["slurm, local"]),
    # missing data
    ("dataset=cifar10", ["cifar10", "dataset.root", "VITLAB_DATA"]),
    ("dataset=folder dataset.root=/nonexistent", ["/nonexistent", "dataset.root"]),
    (
        "dataset.root=photos",
        ["dataset=digits is part of a package", "dataset=folder dataset.root=photos?"],
    ),
    ("dataset.csv=table.csv", ["dataset is digits", "Did you mean dataset=folder dataset.csv=table.csv?"]),
    ("dataset.leave_out=a.txt", ["Did you mean dataset=folder dataset.leave_out=a.txt?"]),
    ("dataset.length=64", ["Did you mean dataset=fake dataset.length=64?"]),
    ("dataset.download=true", ["there is nothing to download"]),
    ("logger=[csv,wandb]", ["Did you mean logger=csv logger.also=[wandb]?"]),
    ("logger=csv logger.also=[wandbb]", ["'wandbb' is none of local, csv", "Did you mean wandb?"]),
    ("logger=csv logger.also=[tensorboard] logger.project=mine", ["Did you mean logger=wandb"]),
    ("logger.project=mine", ["Did you mean logger=wandb logger.project=mine?"]),
    ("recipe.decay_at=[1ep]", ["recipe.schedule is cosine", "Add recipe.schedule=step"]),
    ("slurm.minutes=5", ["slurm. is read with hardware=slurm only"]),
    ("method=tinyvit teacher.train=false teacher.recipe.lr=0.1", ["the teacher is not trained"]),
    ("dataset=cifar10 dataset.download=true", ["cifar10", "dataset.root", "VITLAB_DATA"]),
    # no key=value at all
    ("digits", ["Did you mean dataset=digits"]),
    ("digitss", ["Did you mean dataset=digits"]),
    ("train", ["Did you mean mode=train?"]),
    ("--epochs 10", ["without dashes", "Did you mean recipe.duration=10ep?"]),
    ("--batch-size=10", ["Did you mean recipe.batch_size=10?"]),
    ("--helpp", ["Did you mean --help?"]),
    ("--hydra-help", ["Hydra's own options are not used here", "--help"]),
    ("-m model=resnet18", ["no key has several values"]),
    ("-m seed=0,1 hardware=slurm", ["queued ones would count as finished", "sbatch"]),
    ("-m hardware=cpu,slurm", ["queued ones would count as finished"]),
    ("-m seed=0,0", ["are the same run"]),
    ("-m seed=0,1 recipe.lrr=1", ["Did you mean recipe.lr=1?"]),
    ("-m recipe.lr=interval(0,1)", ["takes single values"]),
    ("sweep.jobs=2", ["Put -m first"]),
    ("model = resnet50", ["Write model=resnet50"]),
    ("recipe.lr 0.1", ["Write recipe.lr=0.1"]),
    ("recipe.lr= 0.1", ["Write recipe.lr=0.1"]),
    ("recipe.lr =0.1", ["Write recipe.lr=0.1"]),
    ("=3", ["the key before the equals sign is missing"]),
    ("recipe..lr=1", ["Keys are words joined by dots"]),
    ("hydra.run.dir=/tmp", ["Hydra's own settings"]),
    ("recipe/foo=3", ["there is no group 'recipe/foo'"]),
    ("foo@bar=1", ["'foo' is not a group"]),
    # lists
    ("group=model", ["mode=list group=model"]),
    ("mode=list group=modle", ["Did you mean group=model?"]),
    ("mode=list grop=model", ["Did you mean group=model?"]),
    ("mode=list model", ["mode=list group=model"]),
    ("mode=list key=recipe.lrr", ["Did you mean key=recipe.lr?"]),
    ("mode=list group=model key=recipe", ["not both"]),
]


@pytest.mark.parametrize(("line", "parts"), CASES, ids=[line for line, _ in CASES])
def test_the_message(
    line: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    (tmp_path / "README.md").touch()
    monkeypatch.chdir(tmp_path)  # in the checkout there may be a finished demo, which is shown whatever the hardware
    assert main(line.split(" ")) == 2
    out, err = capsys.readouterr()
    text = " ".join(err.split())
    for part in parts:
        assert part in text
    assert out == ""
    assert "Traceback" not in err and "omegaconf" not in err.lower() and "full_key" not in err
    assert len(text) < 600, "one short paragraph"
    assert "\n\n" not in err.strip()


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else original(name))
    assert main(["logger=tensorboard"]) == 2
    assert 'pip install "vitlab[tensorboard]"' in " ".join(capsys.readouterr().err.split())


def test_an_internal_error_has_a_stack_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitlab.compose import load as load_module

    def broken(words: list[str]) -> None:
        raise RuntimeError("internal")

    monkeypatch.setattr(load_module, "load", broken)
    assert main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_exit_code_of_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitlab.compose import load as load_module

    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load_module, "load", interrupted)
    assert main([]) == 130


def test_a_path_is_not_broken_in_a_paragraph() -> None:
    path = "/data/" + "x" * 200
    assert path in paragraph(f"There is no folder {path}. Give another.")


def test_a_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitlab.compose.load import load

    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(["output=~/runs"]).config.output == str(tmp_path / "runs")

"""DeepMAD (paper section 3): the network is the solution of a mathematical programme, then it is trained as any other.

The story: *solve* finds the structure with the largest entropy within the budgets, without data, without a GPU and
without torch; *build* makes the network and counts it once more by itself; *train* trains it on the labels.
*handmade* and *other* train the networks of ``model=`` and ``method.other`` in the same way, *sweep* designs for a row
of budgets. A larger score is a
larger entropy; it is not a measured accuracy.
"""

from __future__ import annotations

import time
from dataclasses import replace

from vitlab.config import Config, ModelConfig
from vitlab.methods.base import Context, Method, Stage, longer, stage
from vitlab.methods.deepmad.options import DeepMADOptions, check


def trains(config: Config) -> bool:
    return bool(config.method.train)


def trains_baseline(config: Config) -> bool:
    return bool(config.method.train and config.method.baseline)


def trains_other(config: Config) -> bool:
    return bool(config.method.train and config.method.other.name)


class DeepMAD(Method):
    """Design by mathematical programming."""

    Options = DeepMADOptions
    options: DeepMADOptions

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse contradictions before anything runs."""
        check(config.method, config.dataset.size)

    @classmethod
    def stages(cls, config: Config) -> list[Stage]:
        """The hand-made networks stand in the report under their own names."""
        names = {"handmade": config.model.name, "other": config.method.other.name}
        return [
            replace(one, title=f"hand-made {names[one.name]}") if names.get(one.name) else one
            for one in super().stages(config)
        ]

    @classmethod
    def advice(cls, config: Config) -> list[tuple[str, str]]:
        """A larger entropy is no measured accuracy: other budgets and a longer training are what can be tried."""
        duration = longer(config.recipe.duration)
        found = [(f"training longer, {duration}", f"recipe.duration={duration}")]
        if config.method.structure is None:
            rho = config.method.budget.rho
            if rho:
                found.append(("a shallower, wider network", f"method.budget.rho={rho / 2:g}"))
            found.append(("a longer search", f"method.time_limit={longer(config.method.time_limit)}"))
        return found

    @classmethod
    def network(cls, config: Config) -> str:
        """The designed one; ``model=`` is at most what it is compared with."""
        return "deepmad"

    @classmethod
    def reads(cls, config: Config) -> set[str]:
        """A design alone needs no data, and of the data set no more than its size, if it is given no other."""
        return super().reads(config) | (set() if config.method.resolution else {"dataset"})

    @stage(makes="architecture", title="designed structure", alone=True)
    def solve(self, context: Context) -> dict[str, object]:
        """Maximise the entropy within the budgets (section 3.3), or take the structure that is given."""
        from vitlab.methods.deepmad.solve import solve

        return solve(context, self.options)

    @stage(needs=("solve",), makes="architecture", title="counted network", alone=True)
    def build(self, context: Context) -> dict[str, object]:
        """Make the network and compare its own counts with those that were designed."""
        from vitlab.methods.deepmad.build import build

        start = time.monotonic()
        record = build(context.artifact("solve"), context.folder, self.options, self.config.dataset.size)
        return {**record, "seconds": round(time.monotonic() - start, 2)}

    @stage(
        needs=("solve",),
        makes="report",
        title="designs within other budgets",
        when=lambda config: bool(config.method.sweep),
        alone=True,
    )
    def sweep(self, context: Context) -> dict[str, object]:
        """Design within the budgets times each of ``method.sweep``; the Pareto front of score and cost."""
        from vitlab.methods.deepmad.sweep import sweep

        return sweep(context, self.options)

    @stage(
        reads=("dataset", "model", "recipe", "task"),
        title="hand-made network",
        role="baseline",
        when=trains_baseline,
    )
    def handmade(self, context: Context) -> dict[str, object]:
        """The comparison: a network that nobody designed for this budget, with the same recipe."""
        return self._train(context, self.config.model)

    @stage(
        reads=("dataset", "recipe", "task"),
        title="another hand-made network",
        role="baseline",
        when=trains_other,
    )
    def other(self, context: Context) -> dict[str, object]:
        """The comparison with a second one."""
        return self._train(context, self.options.other)

    @stage(
        needs=("solve", "build"),
        reads=("dataset", "recipe", "task"),
        title="designed network",
        when=trains,
    )
    def train(self, context: Context) -> dict[str, object]:
        """Ordinary classification (section 4): nothing here knows that the network was designed."""
        from vitlab.methods.deepmad.structure import Structure

        structure = Structure.load(context.artifact("solve") / "structure.json")
        args: dict[str, object] = {"structure": structure.to_list()}
        if self.options.drop_path:
            args["drop_path_rate"] = self.options.drop_path
        return self._train(context, ModelConfig(name="deepmad", args=args))

    def _train(self, context: Context, model: ModelConfig) -> dict[str, object]:
        from vitlab.training.train import train_on_labels

        return train_on_labels(context, model, self.config.recipe)

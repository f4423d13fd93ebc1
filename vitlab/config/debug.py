"""Changes to the configuration by ``debug=``, applied before anything reads it. No torch: the plan shows them."""

from __future__ import annotations

from dataclasses import replace

from vitlab.config import AugmentationConfig, Config, RecipeConfig


def apply_debug(config: Config) -> Config:
    """``config`` with every recipe adapted to ``debug.``: batches not larger than the subset, and for ``debug.overfit``
    no regularisation."""
    if config.debug.max_images is None and config.debug.overfit is None:
        return config
    method = config.method
    recipes = {name: _recipe(one, config) for name, one in vars(method).items() if isinstance(one, RecipeConfig)}
    teacher = config.teacher
    if teacher.recipe is not None:
        teacher = replace(teacher, recipe=_recipe(teacher.recipe, config))
    return replace(
        config,
        recipe=_recipe(config.recipe, config),
        teacher=teacher,
        method=replace(method, **recipes) if recipes else method,
    )


def _recipe(recipe: RecipeConfig, config: Config) -> RecipeConfig:
    debug, size = config.debug, recipe.batch_size
    if debug.max_images is not None and size > debug.max_images:
        # The batch must divide into the same micro-batches and, being even, over two devices.
        part = 2 * recipe.accumulate
        size = max(part, debug.max_images // part * part)
    recipe = replace(recipe, batch_size=size)
    if debug.overfit is None:
        return recipe
    return replace(
        recipe,
        batch_size=max(2 * recipe.accumulate, min(size, (debug.max_images or size) // 2)),
        augmentation=AugmentationConfig(interpolation=recipe.augmentation.interpolation),
        schedule="constant",
        weight_decay=0.0,
        label_smoothing=0.0,
        ema=None,
    )

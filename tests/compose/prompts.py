"""Command lines with mistakes, drawn from the typed tree: any key × any wrong value, in any mode, of any method."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from vitlab.compose.schema import Field, fields
from vitlab.config import Config
from vitlab.config.catalogue import GROUPS, choices, conf_dir, mode_meanings
from vitlab.config.ranges import Range, range_of
from vitlab.methods.base import find_method, method_names

CHOICES = (
    *("recipe.schedule", "recipe.balance", "recipe.augmentation.interpolation", "recipe.augmentation.erase_mode"),
    *("dataset.crop", "dataset.targets", "task.targets", "trainer.accelerator", "trainer.strategy"),
    *("trainer.precision", "sweep.sampler", "sweep.prune", "slurm.executor", "predict.format", "mode"),
    *("method.solver", "method.space", "method.scoring", "method.penalty", "method.sampling", "method.densify"),
    *("method.densify_compat", "method.precision", "method.backend", "method.prob_dtype", "method.replay"),
    *("method.views.variant", "method.views.partner", "method.contract.proxy"),
)
"""Keys of text that take one of a few words."""

LISTS_OF_CHOICES = ("evaluation.corruptions", "evaluation.shifted", "export.formats", "benchmark.backends")
"""Keys of lists of such words."""

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n"), min_size=1, max_size=12)
ODD = st.sampled_from(["é", "名前", "🙂", "\u202e", "a b", "a\tb", "%s", "{}", "{0}", "\\", "/", "..", "~", "*", "-"])
WORD = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=3, max_size=8).map(lambda text: f"zz{text}")


@dataclass(frozen=True)
class Prompt:
    """A command line.

    Attributes:
        words: as typed.
        names: keys, of which the answer names at least one.
        kind: of the mistake.
    """

    words: tuple[str, ...]
    names: tuple[str, ...]
    kind: str


def declared_ranges(cls: type = Config, prefix: str = "", options: type | None = None) -> dict[str, Range | None]:
    """Key → the range that its field declares, of every field of the tree."""
    found: dict[str, Range | None] = {}
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        key, hint = f"{prefix}{one.name}", hints[one.name]
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        inner: Any = options if key == "method" else hint
        if parts and dataclasses.is_dataclass(parts[0]):
            inner = parts[0]
            key += ".0" if typing.get_origin(hint) is list else ""
        if dataclasses.is_dataclass(inner):
            found |= declared_ranges(typing.cast(type, inner), f"{key}.", options)
        else:
            found[key] = range_of(one)
    return found


def wrong_values(field: Field, declared: Range | None) -> st.SearchStrategy[str]:
    """Values that ``field`` cannot have, as typed."""
    kind = field.kind
    mistakes: list[st.SearchStrategy[str]] = []
    if not field.optional and kind != "anything":
        mistakes.append(st.just("null"))
    if kind in ("a whole number", "a number"):
        mistakes += [WORD, st.sampled_from(["nan", "inf", "-inf", "1e400", "[1]", "[]", "{a:1}", "''", "", "1,5x"])]
        mistakes += [st.sampled_from(["1.2.3", "0x", "1 2", "--1", "1e", "true", "²", "½"])]
        if kind == "a whole number":
            mistakes += [st.floats(0.01, 0.99).map(lambda x: f"{3 + x:.4f}"), st.just(str(10**30))]
        if declared is not None and declared.high < 1e300:
            mistakes.append(st.integers(1, 10**9).map(lambda x: f"{declared.high + x:.0f}"))
        if declared is not None and declared.low > -1e300:
            mistakes.append(st.integers(1, 10**9).map(lambda x: f"{declared.low - x:.0f}"))
    elif kind == "true or false":
        mistakes += [WORD, st.sampled_from(["2", "1.5", "[true]", "{a:true}", "''", "", "nan", "maybe"])]
    elif kind.startswith("a list"):
        mistakes += [WORD, st.sampled_from(["5", "{a:1}", "[1", "1]", "[[1]", "true", "''", "", "[1,2}", "'[1]'"])]
        if "numbers" in kind:
            mistakes += [st.sampled_from(["[a]", "[nan]", "[[1]]", "[{a:1}]", "[null]", "[1,,2]", "[true]", "[1e400]"])]
        if "whole numbers" in kind:
            mistakes += [st.sampled_from(["[1.5]", "[inf]", f"[{10**30}]"])]
        if "durations" in kind:
            mistakes += [st.sampled_from(["[5]", "[5epochs]", "[nanep]", "[-1ep]", "[[1ep]]", "[{a:1}]"])]
        if field.key in LISTS_OF_CHOICES:
            mistakes += [WORD.map(lambda word: f"[{word}]"), st.sampled_from(["[5]", "[null]", "[[a]]", "['']"])]
    elif kind.startswith("a duration"):
        mistakes += [WORD, st.sampled_from(["90", "ep", "-3ep", "nanep", "infep", "1e3ep", "", "[3ep]", "3 epochs"])]
        mistakes += [st.sampled_from(["{a:1}", "3ep5st", "３ep", "1/2ep", "null", "true", "5%%"])]
    elif field.key in CHOICES:
        mistakes += [WORD, TEXTS.map(lambda text: f"zz{text}"), st.sampled_from(["", "[a]", "{a:1}", "5", "true"])]
    elif kind == "text":
        mistakes += [st.sampled_from(["[a]", "{a:1}", "[]", "[[a]]", "{a:{b:1}}"])]
    elif field.branch and kind == "a group of keys":
        mistakes += [WORD, st.sampled_from(["5", "[1]", "true", "{zz_no_such:1}", "'{}'", "[]"])]
    elif field.free:
        mistakes += [WORD, st.sampled_from(["5", "[1]", "true", "[]"])]
    if not mistakes:  # anything: the places that read it say what
        mistakes += [st.sampled_from(["${nosuch.key}", "${", "{a:", "[1"])]
    return st.one_of(mistakes)


def right_words(field: Field) -> st.SearchStrategy[str]:
    """A value of the declared type, which other keys may still forbid."""
    kind = field.kind
    if kind == "a whole number":
        return st.integers(0, 12).map(str)
    if kind == "a number":
        return st.floats(0.001, 0.9).map(lambda x: f"{x:.4g}")
    if kind == "true or false":
        return st.sampled_from(["true", "false"])
    if kind.startswith("a duration"):
        return st.sampled_from(["1ep", "50st", "30ep", "0.5ep"])
    if kind.startswith("a list"):
        return st.sampled_from(["[]", "[1]", "[0.5,0.5,0.5]", "[a,b]", "[1ep]"])
    if field.branch:
        return st.sampled_from(["{a:1}", "null"])
    return st.one_of(TEXTS, ODD, st.sampled_from(["a", "x/y", "null", "nosuch"]))


def misspelt(key: str) -> st.SearchStrategy[str]:
    """``key`` with a mistake of typing in it."""

    def change(draw: st.DrawFn) -> str:
        at = draw(st.integers(0, len(key) - 1))
        extra = draw(st.sampled_from(["x", "_", "é", "1", "ß", "K"]))
        return draw(
            st.sampled_from(
                [
                    key[:at] + extra + key[at:],
                    key + extra,
                    f"{key}.{extra}",
                    f"{key}..x",
                    f".{key}",
                    f"{key}.",
                    key.replace("_", "-") + "-",
                    key.upper(),
                    f"{key}[0]",
                    f"{key}@x",
                    f"x/{key}",
                    f"{key}:",
                    f"{key}.name.x",
                ]
            )
        )

    return st.composite(change)()


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """A command line with at least one mistake."""
    method = draw(st.sampled_from(method_names()))
    known = fields(find_method(method).Options)
    ranges = declared_ranges(options=find_method(method).Options)
    mode = draw(st.sampled_from([None, None, None, *(one for one in mode_meanings() if one != "list")]))
    words, names = [f"method={method}"], list[str]()
    if mode is not None:
        words.append(f"mode={mode}")
        names += ["method=", "mode="]  # a mode that does not read one, or is another method's
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=draw(st.sampled_from([1, 1, 1, 3]))))
    for kind in kinds:
        word, name = draw(_mistake(kind, known, ranges))
        words.append(word)
        names.append(name)
    if draw(st.booleans()) and len(words) > 2:
        words = list(draw(st.permutations(words)))
    return Prompt(tuple(words), tuple(names), "+".join(kinds))


KINDS = ("value", "value", "value", "value", "key", "choice", "mount", "prefix", "quote")


@st.composite
def _mistake(draw: st.DrawFn, kind: str, known: dict[str, Field], ranges: dict[str, Range | None]) -> tuple[str, str]:
    key = draw(st.sampled_from(sorted(one for one in known if one not in ("mode", "method", "method.name"))))
    field = known[key]
    if kind == "value":
        return f"{key}={draw(wrong_values(field, ranges.get(key)))}", key
    if kind == "key":
        wrong = draw(misspelt(key).filter(lambda one: one not in known and one.partition("@")[0] not in GROUPS))
        return f"{wrong}={draw(st.sampled_from(['1', 'a', '', '[1]', 'null']))}", wrong
    if kind == "choice":
        group = draw(st.sampled_from(list(GROUPS)))
        names = choices(conf_dir(), group)
        odd = st.sampled_from(["", "[a]", "5", "_deepmad", "../config", "null" if group != "experiment" else "nul"])
        value = draw(st.one_of(WORD, TEXTS, ODD, odd).filter(lambda one: one not in names and "{" not in one))
        return f"{group}={value}", group
    if kind == "mount":
        place = draw(st.sampled_from(["zz", "recipe.zz", "", "model", "a.b.c", "method", "teacher.recipe.lr", "é"]))
        group = draw(st.sampled_from(["recipe", "model", "zz"]))
        return f"{group}@{place}=digits", group
    if kind == "prefix":
        prefix = draw(st.sampled_from(["~", "--", "-", "~~", "+~", "@", "=", "$", "?", ","]))
        return f"{prefix}{key}={draw(right_words(field))}", key
    # Of text any of these may be meant, but for brackets that do not match.
    quotes = ["[{}", "{{a:{}", "[{},", "[{}}}", "${{{}}}"]
    if field.kind not in ("text", "anything") or field.key in CHOICES:
        quotes += ["{}{{", "'{}", '"{}', "$({})", "{}\\", "({}"]
    return f"{key}={draw(st.sampled_from(quotes)).format(draw(WORD))}", key

"""Words of a user's own in Markdown: nothing of them becomes markup, and all of them is there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitlab.report import markdown
from vitlab.report.data import ReportData
from vitlab.report.write import write_report
from vitlab.tasks.classification import Classification

TASK = Classification()
MARKUP = re.compile(r"(?<!\\)(?:\\\\)*(?:[`*\[\]~$|]|<(?=[A-Za-z/!?])|&(?=#?\w+;))")
"""What begins code, emphasis, a link, a formula, a column, a tag or an entity, unless a backslash stands before it."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tiny_vit_5m_224, p < 0.05, a & b", "tiny_vit_5m_224, p < 0.05, a & b"),
        ("a|b <i>x</i> &amp; [l](u) *e* _e_ `c` $x$", r"a\|b \<i>x\</i> \&amp; \[l\](u) \*e\* \_e\_ \`c\` \$x\$"),
        ("# no heading\nsecond", "\\# no heading second"),
        ("-1.5 % below", "-1.5 % below"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert markdown.plain(text) == shown


@given(st.text(alphabet=st.sampled_from("a1_*`|<>&;[]()!#$~\\/ -x"), max_size=30))
def test_nothing_is_markup_and_nothing_is_lost(text: str) -> None:
    assert not MARKUP.search(markdown.plain(text))
    assert re.sub(r"\\([\\`*\[\]~$|_<&#>+=-])", r"\1", markdown.plain(text)) == text
    span = markdown.code(text)
    fence = re.match(r"`+", span)
    assert fence is not None and fence[0] not in span[len(fence[0]) : -len(fence[0])].replace(" ", "x")
    block = markdown.block(f"a\n{text}x").splitlines()
    assert block[1:-1] == ["a", f"{text}x"] and block[0] == block[-1] and block[0] not in text


def test_a_report_escapes_names_paths_and_commands(data: ReportData, tmp_path: Path) -> None:
    """Of everything that a user names: classes, run, command, data, notes, exports."""
    bad = "x</td><script>alert(1)</script>|`*"
    changed = replace(
        data,
        title=f"TinyViT on {bad}",
        summary=bad,
        run=f"outputs/{bad}",
        command=f"python -m vitlab name='{bad}```'",
        dataset=replace(data.dataset, description=bad),
        notes=[bad],
        stages=[replace(data.stages[0], artifact=bad)],
        exports=[replace(data.exports[0], path=bad)],
        examples=[replace(data.examples[0], key=bad, label=bad, predicted=bad)],
        config="",
    )
    text = write_report(tmp_path, changed, TASK, figures=False).markdown.read_text()
    fenced = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    bare = re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", fenced)
    assert "<script" in fenced and not re.search(r"(?<!\\)<script", bare)
    assert not re.search(r"(?<!\\)\|`", bare)

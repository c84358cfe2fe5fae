"""What the outcomes of probes before and after tuning say together, as a finding.

In: probes by skill, and their outcomes before and after. Out: the drop of each skill and their mean; the page's tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.evaluate.forgetting.change import Drop, drop, mean_drop, not_sure_of_none
from luthier.evaluate.forgetting.packs import IN_WORDS, Probe
from luthier.evaluate.forgetting.probing import Outcome
from luthier.evaluate.significance import Difference, difference, holm, resampled_sums
from luthier.finding import Block, Figure, Finding, Interval, Intervals, Passage, Passages, Table

SHOWN_ROWS = 6
ALPHA = 0.05


@dataclass(frozen=True)
class Skill:
    """One skill, before and after."""

    name: str
    probes: Sequence[Probe]
    before: Sequence[Outcome]
    after: Sequence[Outcome]
    drop: Drop
    plain: Drop | None
    """Of multiple choice: the same, where the likeliest choice as a whole is the answer."""
    bits: tuple[float, float, Difference] | None
    """Of prose: bits per byte before and after, and their rise."""
    p: float = 1.0
    """Of no drop or rise, after Holm's correction over the skills."""

    @property
    def worse(self) -> bool:
        """Whether it has clearly become worse."""
        return self.drop.by.difference > 0 and self.p < ALPHA


def compare(
    skills: Mapping[str, Sequence[Probe]],
    before: Mapping[str, Sequence[Outcome]],
    after: Mapping[str, Sequence[Outcome]],
    resamples: int,
    seed: int,
) -> list[Skill]:
    """Every skill, worst hit first."""
    changed = any(before[name] != after[name] for name in skills)
    found = []
    for number, (name, probes) in enumerate(skills.items()):
        both = (before[name], after[name])
        draw = (resamples, seed + number)  # other draws for each skill: they are other rows

        def of(field: str, both: Any = both, draw: Any = draw) -> Drop:
            then, now = ([(getattr(each, field), each.of) for each in outcomes] for outcomes in both)
            return drop(then, now, *draw)

        dropped = of("right")
        if changed and probes[0].kind != "prose":
            dropped = not_sure_of_none(dropped, len(probes))
        plain = of("plain") if probes[0].kind == "choices" else None
        bits = rise_in_bits(*both, *draw) if probes[0].kind == "prose" else None
        found.append(Skill(name, probes, *both, dropped, plain, bits))
    ps = holm([skill.drop.by.p for skill in found])
    found = [Skill(**{**vars(skill), "p": p}) for skill, p in zip(found, ps, strict=True)]
    return sorted(found, key=lambda skill: -skill.drop.by.difference)


def rise_in_bits(
    before: Sequence[Outcome], after: Sequence[Outcome], resamples: int, seed: int
) -> tuple[float, float, Difference]:
    """Bits per byte before and after, and by how much they rose."""
    tables = [np.array([(each.bits, each.size) for each in outcomes], dtype=np.float64) for outcomes in (before, after)]
    then, now = (float(table[:, 0].sum() / table[:, 1].sum()) for table in tables)
    then_B, now_B = (each[:, 0] / each[:, 1] for each in resampled_sums(tables, resamples, seed))
    return then, now, difference(now - then, now_B - then_B)


def describe(skills: Sequence[Skill]) -> Finding:
    """The finding, from skills in the order of their drop."""
    overall = mean_drop([skill.drop for skill in skills])
    figures = {"forgetting": figure("mean drop over all skills", overall)}
    for skill in skills:
        figures[f"forgetting({skill.name})"] = figure(f"drop in {skill.name}", skill.drop.by)
        if skill.bits is not None:
            _, _, rise = skill.bits
            title = f"rise of bits per byte in {skill.name}"
            figures[f"bits_per_byte_rise({skill.name})"] = Figure(
                title, rise.difference, rise.low, rise.high, unit="bits"
            )
    return Finding(
        sentence(skills, overall),
        figures,
        blocks(skills, overall),
        details={"skills": [account(skill) for skill in skills]},
        files={"probes.jsonl": [row for skill in skills for row in rows_of(skill)]},
    )


def figure(title: str, by: Difference) -> Figure:
    return Figure(title, by.difference, by.low, by.high, percent=True)


def points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"  # never -0.0


def ends(by: Difference) -> str:
    return f"{points(by.low)} to {points(by.high)}"


def sentence(skills: Sequence[Skill], overall: Difference) -> str:
    probes = sum(len(skill.probes) for skill in skills)
    about = f"{probes} probes of {len(skills)} skill{'s' if len(skills) > 1 else ''}"
    if all(skill.before == skill.after for skill in skills):
        return f"Nothing was forgotten: the tuned model answers {about} exactly as the base model does."
    if overall.low > 0:
        lost = f"{points(overall.difference)} points on average (95%: {ends(overall)})"
        said = f"The model forgot: over {about} it lost {lost}"
    elif overall.high < 0:
        said = f"The model forgot nothing on average: over {about} it gained {points(-overall.difference)} points"
    else:
        said = (
            f"No forgetting can be seen on average: over {about} the change is "
            f"{points(-overall.difference)} points (95%: {points(-overall.high)} to {points(-overall.low)})"
        )
    if worse := [skill for skill in skills if skill.worse]:
        listed = ", ".join(
            f"{skill.name} ({points(skill.drop.before)} to {points(skill.drop.after)})" for skill in worse[:3]
        )
        return f"{said}. Worst hit: {listed}{' and others' if len(worse) > 3 else ''}."
    return f"{said}."


def blocks(skills: Sequence[Skill], overall: Difference) -> list[Block]:
    intervals = [
        Interval(skill.name, skill.drop.by.difference, skill.drop.by.low, skill.drop.by.high, skill.worse)
        for skill in skills
    ]
    mean = Interval("all skills", overall.difference, overall.low, overall.high, True)
    shown: list[Block] = [
        Intervals(
            "Drop of each skill after tuning; above zero is forgotten",
            [mean, *intervals],
            percent=True,
            note="95% intervals from the same resamples of probes before and after.",
        ),
        Table(
            "The same probes before and after",
            ["skill", "kind", "probes", "before", "after", "drop in points (95%)", "p"],
            [line(skill) for skill in skills],
            note="Share of right answers: multiple choice by the likeliest choice per character, grammatical pairs by "
            "the likelier sentence, last words and prose by the likeliest token, instructions by what can be checked. "
            "p is Holm's, over the skills.",
        ),
    ]
    if prose := [skill for skill in skills if skill.bits is not None]:
        rows = []
        for skill in prose:
            assert skill.bits is not None
            then, now, rise = skill.bits
            rows.append(
                [
                    skill.name,
                    f"{then:.3f}",
                    f"{now:.3f}",
                    f"{rise.difference:+.3f} ({rise.low:+.3f} to {rise.high:+.3f})",
                ]
            )
        shown.append(
            Table("Bits per byte of general prose; lower is better", ["skill", "before", "after", "change (95%)"], rows)
        )
    if lost := [row for skill in skills for row in lost_rows(skill)][:SHOWN_ROWS]:
        shown.append(Passages("Right before, wrong after", lost))
    return shown


def line(skill: Skill) -> list[str]:
    by = skill.drop.by
    return [
        skill.name,
        IN_WORDS[skill.probes[0].kind],
        f"{len(skill.probes):,}",
        points(skill.drop.before),
        points(skill.drop.after),
        f"{points(by.difference)} ({ends(by)})",
        f"{skill.p:.2g}",
    ]


def lost_rows(skill: Skill) -> list[Passage]:
    """Some of the probes that were right before and are wrong after."""
    if skill.probes[0].kind == "prose":
        return []
    lost = [
        Passage(f"{skill.name}: {asked(probe)}", f"before: {was.answer}\nafter: {now.answer}" if was.answer else "")
        for probe, was, now in zip(skill.probes, skill.before, skill.after, strict=True)
        if was.right > now.right
    ]
    return lost[: max(1, SHOWN_ROWS // 3)]


def asked(probe: Probe) -> str:
    fields = probe.fields
    if probe.kind == "cloze":
        return f"{fields['context']} [{fields['target']}]"
    if probe.kind == "pairs":
        return str(fields["sentence_good"])
    if probe.kind == "choices":
        return str(fields.get("query") or fields["choices"][fields["answer"]])
    return str(fields["instruction"] if probe.kind == "instructions" else fields["text"])


def account(skill: Skill) -> dict[str, Any]:
    """One skill for verdict.json."""
    by = skill.drop.by
    found: dict[str, Any] = {
        "skill": skill.name,
        "kind": skill.probes[0].kind,
        "probes": len(skill.probes),
        "before": skill.drop.before,
        "after": skill.drop.after,
        "drop": by.difference,
        "low": by.low,
        "high": by.high,
        "p_adjusted": skill.p,
    }
    if skill.plain is not None:
        found |= {"before_plain": skill.plain.before, "after_plain": skill.plain.after}
    if skill.bits is not None:
        found |= {"bits_per_byte_before": skill.bits[0], "bits_per_byte_after": skill.bits[1]}
    return found


def rows_of(skill: Skill) -> list[dict[str, Any]]:
    """A line a probe for probes.jsonl."""
    return [
        {
            "skill": skill.name,
            "place": probe.place.rpartition("/")[2],
            "probe": asked(probe)[:200],
            "of": was.of,
            "before": was.right,
            "after": now.right,
            "answer_before": was.answer,
            "answer_after": now.answer,
        }
        for probe, was, now in zip(skill.probes, skill.before, skill.after, strict=True)
    ]

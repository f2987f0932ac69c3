"""A retention plan keeps its promises for all checkpoints and rules."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.retention import Best, Item, Keep, plan

places = st.builds(
    CheckpointId,
    st.integers(0, 2),
    st.integers(0, 60),
    st.sampled_from(Stage),
    st.integers(1, 3),
)
values = st.floats(width=16) | st.just(math.nan)
items = st.lists(
    st.builds(Item, places, st.dictionaries(st.sampled_from(["loss", "acc"]), values)),
    unique_by=lambda item: item.id,
    max_size=25,
)
bests = st.builds(
    Best,
    st.sampled_from(["loss", "acc", "none"]),
    st.sampled_from(["min", "max", "auto"]),
    st.integers(1, 4),
)
keeps = st.builds(
    Keep,
    last=st.none() | st.integers(1, 6),
    every=st.none() | st.integers(1, 30),
    best=st.none() | bests,
)


@given(items, keeps)
def test_a_plan_keeps_what_it_promises(items: list[Item], keep: Keep) -> None:
    kept = plan(items, keep)
    ordered = sorted(item.id for item in items)
    assert kept <= set(ordered)
    assert set(ordered[-(keep.last or len(ordered) or 1) :]) <= kept
    if keep.every is not None:
        for item in items:
            stretch = [
                other
                for other in kept
                if other.phase == item.id.phase
                and other.step // keep.every == item.id.step // keep.every
            ]
            assert stretch, "every stretch of steps that had a checkpoint still has one"
            assert min(stretch) <= item.id
    if keep.best is not None:
        scores = {
            item.id: item.metrics[keep.best.metric]
            for item in items
            if not math.isnan(item.metrics.get(keep.best.metric, math.nan))
        }
        missing = [score for checkpoint, score in scores.items() if checkpoint not in kept]
        ranked = sorted(scores.values(), reverse=keep.best.bigger)
        for score in missing:
            worst_kept = ranked[: keep.best.count][-1]
            assert score <= worst_kept if keep.best.bigger else score >= worst_kept
        assert len(scores) - len(missing) >= min(keep.best.count, len(scores))


@given(items, keeps)
def test_planning_is_idempotent(items: list[Item], keep: Keep) -> None:
    kept = plan(items, keep)
    assert plan([item for item in items if item.id in kept], keep) == kept


@given(items, keeps)
def test_more_rules_keep_more(items: list[Item], keep: Keep) -> None:
    if keep.last is not None:
        assert plan(items, Keep(last=keep.last)) <= plan(items, keep)


@given(keeps)
def test_rules_format_to_the_text_they_were_parsed_from(keep: Keep) -> None:
    assert Keep.parse(str(keep)) == keep

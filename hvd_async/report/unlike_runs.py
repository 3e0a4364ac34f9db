"""Warnings of differences that make the runs of a report hard to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hvd_async.comparison.collection import Collection
from hvd_async.comparison.differences import differing_keys
from hvd_async.comparison.runs import Run
from hvd_async.report.run_settings import differs_within_a_seed

_MOST_NAMED = 3


def warnings_about(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a sentence for each kind of difference."""
    if differs_within_a_seed(runs, lambda run: run.data_fingerprint):
        yield "The runs were not trained on the same data, or the data were prepared differently: see what differs."
    if keys := _keys_of_unlike_measurements(runs):
        names = f"{', '.join(keys[:_MOST_NAMED])}{', ...' if len(keys) > _MOST_NAMED else ''}"
        yield f"The runs measure different things ({names}), so their scores are not comparable."
    if len(units := sorted({run.weight_unit for run in runs})) > 1:
        yield f"The runs count their weight in different units ({', '.join(units)}), so weights are not compared."
    if any(run.config.validation.every_during for run in runs):
        yield "Some runs were measured while they trained (validation.when: during), and their seconds include that."


def untuned_note(collection: Collection) -> str:
    """Return a sentence if variants are compared without rates of their own to choose from; empty otherwise."""
    if len(collection.rates) > 1 or not _are_several_variants(collection):
        return ""
    return (
        "The learning rate of each variant was set, not chosen among several: another rate may be best for another variant"
        " (`rates` in a suite)."
    )


def target_note(collection: Collection) -> str:
    """Return a sentence on how the target was chosen; empty if it was given, or there is nothing to compare."""
    target = collection.target
    if target is None or target.is_given or not _are_several_variants(collection):
        return ""
    everywhere = ", in every environment" if len(collection.environments) > 1 else ""
    return (
        f"The target was not chosen beforehand. {str(target)[:1].upper()}{str(target)[1:]} is the lowest that all runs of the"
        f" baseline reached, and all runs of at least one other variant{everywhere}."
    )


def _are_several_variants(collection: Collection) -> bool:
    return len({entry.variant for entry in collection.entries}) > 1


def _keys_of_unlike_measurements(runs: Sequence[Run]) -> list[str]:
    """Return the keys on which scores depend, in which the tasks of the runs differ."""
    if len({run.config.task.kind for run in runs}) > 1:
        return ["task.kind"]
    alike = [f"task.{name}" for run in runs for name in run.config.task.decide_scores]
    differing = differing_keys([run.config for run in runs])
    return [key for key in differing if any(key == name or key.startswith(f"{name}.") for name in alike)]

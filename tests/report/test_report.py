"""The files of a report, from runs whose figures are known."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
import re
import xml.etree.ElementTree
from typing import Any

import pytest

from hvd_async.comparison.collection import Collection
from hvd_async.comparison.target import Target
from hvd_async.errors import ConfigError, DataError
from hvd_async.report import text_of, write_report
from tests.comparison.made import ACCURACY, BLEU, LOSS, PERPLEXITY
from tests.report.folders import FakeRun, VariantRuns, collect

TARGET = Target(LOSS, 2.5)  # reached after three quarters of the run
SYNC = FakeRun("horovod", wait=0.5)
FAST = FakeRun(seconds=50.0, scores={BLEU: 29.0})
EVEN = {"seconds": 1.0}


def pair(root: pathlib.Path, **fields: Any) -> Collection:
    """Return a collection with two seeds each of the baseline and of a variant that is twice as fast."""
    return collect(root, [VariantRuns("horovod", [SYNC, SYNC]), VariantRuns("async", [FAST, FAST])], TARGET, **fields)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("pair")
    output = root / "report"
    paths = write_report(pair(root, text="title: a\n", source="/home/x/suite.yaml"), output)
    written = [path for path in output.rglob("*") if path.is_file()]
    assert sorted(paths) == sorted(written) and paths[0] == output / "report.html"
    return output


def lines_of(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_markdown_contains_the_answer_and_the_figures(report: pathlib.Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert text.startswith(
        "# A test\n\n2 variants, 2 seeds; 4 of 4 runs finished. Baseline: horovod.\n\n"
        "**async reached loss 2.500 in 0.50 of the time of horovod (0.50 to 0.50), with lower BLEU (29.0 against 30.0;"
        " difference"
        " -1.0 to -1.0).**\n\n"
    )
    for line in (
        "| horovod | 2 of 2 | 75.0 (75.0 to 75.0) | 7,500 (7,500 to 7,500) | 75 (75 to 75) | 1 (baseline) | 1 (baseline)"
        " | 1 (baseline) |",
        "| async | 2 of 2 | 37.5 (37.5 to 37.5) | 7,500 (7,500 to 7,500) | 75 (75 to 75) | 2.00 (2.00 to 2.00)"
        " | 1.00 (1.00 to 1.00) | 2.00 (2.00 to 2.00) |",
        "| async | 2.000 (2.000 to 2.000) | 29.0 (29.0 to 29.0) | -1.0 (-1.0 to -1.0) | 0 of 2 | 200 (200 to 200) | 0.50 |"
        " 0 |",
        "| strategy.kind | horovod | async |",
        "| strategy.arrivals_per_update | workers | 1 |",
        "- steps as long as the real ones.",
        "- 4 runs: real; seconds are measured by a clock; 2 workers and 2 ranks (cpu) on 1 host (node1); hvd_async 0.1.0,"
        " Python 3.11.2,"
        " torch 2.9, compiled kernels, A CPU",
        "[../runs/00-s1](../runs/00-s1/)",
        "<summary>The suite: suite.yaml</summary>",
        "<summary>What all runs share: their configurations without what differs</summary>",
        "  learning_rate: 0.001\n",
        "The learning rate of each variant was set, not chosen among several",
    ):
        assert line in text
    shared = text[text.index("<summary>What all runs share") :].split("```")[1]
    assert not re.search("^(seed|output): |^  (kind: async|arrivals_per_update: )", shared, re.M)


def test_runs_shorter_than_the_timeline_are_drawn_as_long_as_the_shortest(tmp_path: pathlib.Path) -> None:
    wanted = [
        VariantRuns("horovod", [FakeRun("horovod", wait=0.5, seconds=9.0)]),
        VariantRuns("async", [FakeRun(seconds=4.0)]),
    ]
    write_report(collect(tmp_path, wanted, TARGET), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "What all workers did in 4.00 s in the middle of the run" in text
    assert "Steps finished in equal time: 6 with horovod; 8 with async." in text


def test_every_run_has_a_line_with_its_numbers(report: pathlib.Path) -> None:
    lines = lines_of(report / "runs.csv")
    assert [(line["variant"], line["seed"], line["folder"]) for line in lines] == [
        ("horovod", "1", "../runs/00-s1"),
        ("horovod", "2", "../runs/00-s2"),
        ("async", "1", "../runs/01-s1"),
        ("async", "2", "../runs/01-s2"),
    ]
    last = lines[-1]
    assert last["chosen"] == "true" and last["status"] == "finished" and last["reached_is_bound"] == "false"
    found = {name: float(last[name]) for name in ("seconds", "weight", "updates", "final_loss", "best_loss", "final_bleu")}
    assert found == {"seconds": 50, "weight": 10_000, "updates": 100, "final_loss": 2, "best_loss": 2, "final_bleu": 29}
    assert float(last["reached_seconds"]) == pytest.approx(37.5)
    assert float(last["weight_per_second"]) == 200.0


def test_every_variant_has_a_line_with_its_numbers(report: pathlib.Path) -> None:
    base, fast = lines_of(report / "variants.csv")
    assert (base["variant"], base["is_baseline"], fast["is_baseline"]) == ("horovod", "true", "false")
    assert float(fast["speed_up"]) == pytest.approx(2.0) and fast["speed_up_num"] == "2"
    assert float(base["waiting"]) == pytest.approx(65 * 0.5 / 100)  # all of the 66 steps but the first come after a wait


def test_figures_are_complete_and_valid(report: pathlib.Path) -> None:
    names = {path.name for path in (report / "figures").iterdir()}
    drawn = ("speed-ups", "curves-loss", "curves-bleu", "staleness", "shares", "timeline")
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    for path in (report / "figures").glob("*.svg"):
        assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")


def test_identifiers_in_the_page_are_unique(report: pathlib.Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert not set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) - set(ids)


def test_the_same_runs_give_the_same_bytes_in_any_folder(report: pathlib.Path, tmp_path: pathlib.Path) -> None:
    paths = write_report(pair(tmp_path, text="title: a\n", source="suite.yaml"), tmp_path / "report")
    for path in paths:
        assert path.read_bytes() == (report / path.relative_to(tmp_path / "report")).read_bytes(), path.name


OTHER_METRICS = [
    VariantRuns("horovod", [FakeRun("horovod", wait=0.5, scores={ACCURACY: 90.0, PERPLEXITY: 8.0})] * 2),
    VariantRuns("async", [FakeRun(seconds=50.0, scores={PERPLEXITY: 8.4, ACCURACY: 92.0})] * 2),
    VariantRuns("short", [FakeRun(scores={ACCURACY: 40.0})] * 2),
    VariantRuns("other", [FakeRun(scores={})] * 2),
]


@pytest.fixture(scope="module")
def other_metrics(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("metrics")
    return write_report(collect(root, OTHER_METRICS, Target(ACCURACY, 45.0)), root / "report")[0].parent


def test_every_metric_has_its_title_and_its_digits(other_metrics: pathlib.Path) -> None:
    text = (other_metrics / "report.md").read_text(encoding="utf-8")
    for line in (
        "**async reached accuracy 45.0 in 0.49 of the time of horovod (0.49 to 0.49), with higher accuracy (92.0 against 90.0;"
        " difference +2.0 to +2.0).**",
        "To accuracy 45.0:",
        "| horovod | 2 of 2 | 50.0 (50.0 to 50.0) |",
        "| short | 0 of 2 (not reached: highest accuracy 40.0, after 10,000 tokens) | – |",
        "| other | 0 of 2 | – |",
        "| final loss | final accuracy | accuracy difference | final perplexity | perplexity difference | diverged |",
        "| horovod | 2.000 (2.000 to 2.000) | 90.0 (90.0 to 90.0) | baseline | 8.00 (8.00 to 8.00) | baseline |",
        "| async | 2.000 (2.000 to 2.000) | 92.0 (92.0 to 92.0) | +2.0 (+2.0 to +2.0) | 8.40 (8.40 to 8.40)"
        " | +0.40 (+0.40 to +0.40) |",
        "| short | 2.000 (2.000 to 2.000) | 40.0 (40.0 to 40.0) | -50.0 (-50.0 to -50.0) | – | – |",
        "| other | 2.000 (2.000 to 2.000) | – | – | – | – |",
        "| final loss | best loss | final accuracy | final perplexity |",
        "- **Final accuracy**: Validation of the final model, over the runs that did not diverge, in %. The higher, the better."
        " Difference: own - baseline, seed by seed; equal: the whole interval lies within 1.",
        "- **Final perplexity**: Validation of the final model, over the runs that did not diverge, on whole sentences. The"
        " lower, the better. Difference: own - baseline, seed by seed; equal: the whole interval lies within 0.1.",
    ):
        assert line in text


def test_every_metric_has_its_columns(other_metrics: pathlib.Path) -> None:
    names = ("final_loss", "best_loss", "final_accuracy", "final_perplexity")
    runs = [[line[name] for name in names] for line in lines_of(other_metrics / "runs.csv")[::2]]
    assert runs == [
        ["2.0", "2.0", "90.0", "8.0"],
        ["2.0", "2.0", "92.0", "8.4"],
        ["2.0", "2.0", "40.0", ""],
        ["2.0", "2.0", "", ""],
    ]
    names = ("final_loss", "final_accuracy", "accuracy_difference", "final_perplexity", "perplexity_difference_num")
    assert [[line[name] for name in names] for line in lines_of(other_metrics / "variants.csv")] == [
        ["2.0", "90.0", "0.0", "8.0", "2"],
        ["2.0", "92.0", "2.0", "8.4", "2"],
        ["2.0", "40.0", "-50.0", "", ""],
        ["2.0", "", "", "", ""],
    ]
    assert "loss_difference" not in lines_of(other_metrics / "variants.csv")[0]


def test_every_metric_has_curves(other_metrics: pathlib.Path) -> None:
    curves = {path.stem: path.read_text() for path in other_metrics.glob("figures/curves-*.svg")}
    assert set(curves) == {"curves-loss", "curves-accuracy", "curves-perplexity"}
    assert "<!-- validation accuracy in % -->" in curves["curves-accuracy"]
    assert "<!-- validation loss in nats per token -->" in curves["curves-loss"]
    assert ["<!-- target: accuracy 45.0 -->" in curves[f"curves-{name}"] for name in ("loss", "accuracy")] == [False, True]
    # A run without the metric has no line in its figure.
    assert ["<!-- short -->" in text for name, text in sorted(curves.items())] == [True, True, False]


def test_weights_have_the_unit_of_the_task(tmp_path: pathlib.Path) -> None:
    wanted = [
        VariantRuns("horovod", [FakeRun("horovod", wait=0.5, unit="images")]),
        VariantRuns(
            "async", [FakeRun(seconds=50.0, final=3.0, unit="images", emulation={"seconds_per_weight": 0.5, **EVEN})]
        ),
    ]
    collection = collect(tmp_path, wanted, TARGET)
    write_report(collection, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    for line in (
        "| variant | reached by | seconds | images | updates | speed-up | image efficiency | throughput |",
        "0 of 1 (not reached: lowest loss 3.000, after 10,000 images)",
        "| diverged | images/s | staleness |",
        "| ended | seconds | images | updates |",
        "- **Image efficiency**: Images of the baseline / own images to the lowest loss that both reached, seed by seed: 1 if"
        " each of them is worth as much.",
        "- **Throughput**: Own images per second / those of the baseline, seed by seed.",
        "- async: steps of 1 s, 0.5 s more for each image.",
        "*Validation loss over seconds of training, images and updates. Scores beyond the edge are not shown.*",
    ):
        assert line in text
    shared = text[text.index("<summary>What all runs share") : text.index("Lengths of steps")]
    assert "tokens" not in text.replace(shared, "")  # which has keys of translation
    assert "<!-- images -->" in (tmp_path / "report/figures/curves-loss.svg").read_text()
    assert "image efficiency" in text_of(collection) and "images/s" in text_of(collection)
    line = lines_of(tmp_path / "report/runs.csv")[0]
    assert (line["weight"], line["weight_unit"], line["weight_per_second"]) == ("10000", "images", "100.0")


def test_weights_of_runs_with_different_units_are_not_compared(tmp_path: pathlib.Path) -> None:
    wanted = [VariantRuns("horovod", [SYNC]), VariantRuns("async", [FakeRun(seconds=50.0, unit="images")])]
    write_report(collect(tmp_path, wanted, TARGET), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    for line in (
        "The runs count their weight in different units (images, tokens), so weights are not compared.",
        "| variant | reached by | seconds | weight | updates | speed-up | weight efficiency | throughput |",
        "| async | 1 of 1 | 37.5 | 7,500 | 75 | 2.00 | – | – |",
        "| (unit of weight) | tokens | images |",
    ):
        assert line in text


def test_environments_rates_and_failures_are_distinguished(large: pathlib.Path) -> None:
    text = (large / "report.md").read_text(encoding="utf-8")
    for line in (
        "**even workers: async reached loss 2.500 in 0.50 of the time of horovod (0.50 to 0.50), with lower BLEU (29.0"
        " against",
        "**one slow worker: async reached loss 2.500 in the same time as horovod (one seed: no interval), with BLEU 30.0"
        " against",
        "async: the best learning rate, 0.01, is at the edge of those tried.",
        "| async | 0.01 (at the edge) | 2 of 2 |",
        "| 14 (too_stale: 14) |",
        "| 3 of 200 |",
        "(figures/rates-even-workers.svg)",
        "(figures/timeline-one-slow-worker.svg)",
        "What all workers did in 5.00 s: ",
        "| emulation.seconds | – | 0.25 |",
        "- one slow worker: steps of 0.25 s, log-normal spread 0.3, worker 0 takes 2 times as long.",
        "| failed (../runs/02-s2: exit status 3) |",
        "<summary>The suite: suite.yaml</summary>",
    ):
        assert line in text
    lines = lines_of(large / "runs.csv")
    assert [(line["chosen"], line["status"], line["has_diverged"]) for line in lines[2:6]] == [
        ("true", "finished", "false"),
        ("true", "finished", "false"),
        ("false", "finished", "true"),
        ("false", "failed", ""),
    ]
    assert (lines[5]["fault"], lines[5]["seconds"]) == ("../runs/02-s2: exit status 3", "")


QUICK = FakeRun("horovod", scores={})  # quick to draw
NAMES = ("$x$ <b>&amp;</b>", "a|b *c* `d`", "x" * 90, "мир 世界")
UNUSUAL = {
    "nothing": ([], "No run: there is nothing to compare."),
    "one run": ([VariantRuns("horovod", [SYNC])], "There is only horovod here, and nothing to compare it with."),
    "failures alone": ([VariantRuns("horovod", [None, None]), VariantRuns("async", [None, None])], "No run has ended"),
    "no BLEU": (
        [VariantRuns("horovod", [FakeRun("horovod", scores={})]), VariantRuns("async", [FakeRun(scores={})])],
        "with a final loss of 2.000",
    ),
    "diverged": (
        [VariantRuns("horovod", [SYNC, None]), VariantRuns("async", [FakeRun(final=math.nan, num_measured=2)] * 2)],
        "async: 2 of 2 runs diverged.",
    ),
    "nothing but NaN": ([VariantRuns("horovod", [FakeRun("horovod", final=math.nan, num_measured=1)])], "No target"),
    "a dozen of odd names": (
        [
            VariantRuns("horovod", [QUICK]),
            *(VariantRuns(name, [FakeRun(scores={})]) for name in NAMES),
            *(VariantRuns(f"variant {n}", [QUICK]) for n in range(7)),
        ],
        "is the fastest of 11",
    ),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_comparisons_are_readable(case: str, tmp_path: pathlib.Path) -> None:
    wanted, words = UNUSUAL[case]
    collection = collect(tmp_path, wanted, None if case in ("nothing", "failures alone", "nothing but NaN") else TARGET)
    write_report(collection, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert words in text.replace("\\", "")
    assert words.partition(" in 0.")[0] in " ".join(text_of(collection).split())
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page and str(tmp_path) not in page
    assert len(lines_of(tmp_path / "report" / "runs.csv")) == len(collection.entries)
    figures = {path.stem for path in (tmp_path / "report").glob("figures/*.svg")}
    assert ("curves-loss" in figures) == (case not in ("nothing", "failures alone", "nothing but NaN"))


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: pathlib.Path) -> None:
    output, collection = tmp_path / "paper", pair(tmp_path)
    mine = {"report.md": "my own", "figures/mine.svg": "<svg/>"}
    for name, text in mine.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text)
    with pytest.raises(
        ConfigError, match=f"--output: got {output}, where report.md is not from a report, expected a folder"
    ):
        write_report(collection, output)
    assert {str(path.relative_to(output)): path.read_text() for path in output.rglob("*.*")} == mine
    figures = {path for path in write_report(collection, output, overwrite=True) if path.parent.name == "figures"}
    former = output / "figures" / "former.svg"
    former.write_text("<svg/>")
    with (output / "report.md").open("a") as file:
        file.write("![of a former report](figures/former.svg)")
    write_report(collection, output)
    assert not former.exists() and set((output / "figures").iterdir()) == {*figures, output / "figures/mine.svg"}


def test_names_of_a_damaged_or_hostile_plan_stay_within_their_line_and_cell(tmp_path: pathlib.Path) -> None:
    collection = pair(tmp_path)
    odd = "\x1b[31m=1+1\nhvd-async: forged"
    entries = tuple(dataclasses.replace(e, variant=odd if e.variant == "async" else "=2+2") for e in collection.entries)
    collection = dataclasses.replace(collection, entries=entries, baseline="=2+2", title=odd)
    write_report(collection, tmp_path / "report")
    shown = text_of(collection)
    for text in (shown, *((tmp_path / "report" / name).read_text() for name in ("report.md", "report.html", "runs.csv"))):
        assert "\x1b" not in text and not any(line.startswith("hvd-async: forged") for line in text.split("\n"))
    lines = (tmp_path / "report" / "variants.csv").read_text().splitlines()
    variants = {line["variant"] for line in csv.DictReader(lines)}
    assert variants == {"'=2+2", "\\x1b[31m=1+1\\nhvd-async: forged"}


def test_a_damaged_log_is_named(tmp_path: pathlib.Path) -> None:
    collection = pair(tmp_path)
    (tmp_path / "runs" / "01-s2" / "events.jsonl").write_text('{"event": "arrival"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"01-s2/events\.jsonl: an event is damaged"):
        write_report(collection, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_terminal_gets_the_answer_and_a_table(tmp_path: pathlib.Path) -> None:
    text, below = text_of(pair(tmp_path)).split("\n\nIn brackets: 95 % intervals by Student's t over seeds.\n\n")
    assert below.startswith("The learning rate of each variant was set, not chosen among several")
    lines = text.splitlines()
    assert lines[0].startswith("async reached loss 2.500 in 0.50 of the time of horovod (0.50 to 0.50), with lower BLEU")
    assert [line.split("  ")[0] for line in lines[-4:]] == ["variant", "-------", "horovod", "async"]
    assert lines[-1].split() == "async 2 of 2 37.5 2.00 (2.00 to 2.00) 1.00 2.000 29.0 0 of 2 200 0.50".split()
    assert len({len(line) for line in lines[-4:]}) == 1


def test_the_terminal_shows_the_final_score_of_every_metric(tmp_path: pathlib.Path) -> None:
    lines = text_of(collect(tmp_path, OTHER_METRICS, Target(PERPLEXITY, 10.0))).partition("\n\nIn brackets")[0].splitlines()
    assert lines[0].startswith("async reached perplexity 10.00 in 0.5")
    words = (
        "variant reached by seconds speed-up token efficiency final loss final accuracy final perplexity diverged tokens/s"
    )
    assert " ".join(lines[-6].split()) == f"{words} staleness"
    assert lines[-3].split()[-8:] == ["2.000", "92.0", "8.40", "0", "of", "2", "200", "0.50"]

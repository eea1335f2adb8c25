"""The report: its keys, that the page needs nothing from outside, and what its words claim."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import ConfigError
from pipeline.evaluation.report import advice, deletion_table, read_report, render, write_report


def entry(units: int, error: float | None = 0.04, **changes: Any) -> dict[str, Any]:
    return {
        "units": units,
        "repeats": 3,
        "sum_seconds": 0.0047,
        "total_seconds": 0.02,
        "retrain_seconds": 1.5,
        "distance": 0.007,
        "no_update_distance": 0.17,
        "relative_error": error,
        "relative_error_range": [error, error],
        "loss_change_pearson": None if units == 1 else 0.9981,
        "loss_change_spearman": None if units == 1 else 0.9972,
        "loss_change_points": [[0.1 * i, 0.11 * i] for i in range(min(units, 40))],
        "test_accuracy": {"trained": 0.9, "unlearned": 0.89, "retrained": 0.885},
    } | changes


def report(**changes: Any) -> dict[str, Any]:
    return {
        "name": "digits & <co>",
        "num_units": 1437,
        "num_parameters": 650,
        "num_steps": 675,
        "hvp_form": "r-operator",
        "train_seconds": 1.2,
        "precompute_seconds": 7.5,
        "hvps": 938427,
        "hvps_per_second": 125000.0,
        "store_bytes": 1868100,
        "bytes_per_parameter": 2.0,
        "row_error_max": 0.0003,
        "deletions": [entry(1), entry(20), entry(287)],
        "training_curve": [
            {"step": s, "train_loss": 2.3 - 0.001 * s, "test_accuracy": 0.1 + 0.001 * s}
            for s in (0, 340, 675)
        ],
        "environment": {"python": "3.11", "versions": {"torch": "2.15"}},
        "config": {
            "data": {"unit": "sample"},
            "model": {"name": "mlp", "activation": "relu"},
            "recursion": {"relu_curvature": "none"},
        },
    } | changes


@pytest.fixture(scope="module")
def html() -> str:
    return render(report() | {"advice": []})


class Page(HTMLParser):
    """Collects what a browser would load, every identifier and every reference to one."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "path", "use", "br"}:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            elif name in {"src", "href", "xlink:href", "data", "srcset"}:
                (self.references if (value or "").startswith("#") else self.loads).append(
                    value or ""
                )
            self.references += re.findall(r"url\((#[^)]+)\)", value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def parsed(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page


def test_page_loads_nothing_and_its_drawings_refer_to_themselves(tmp_path: Path) -> None:
    write_report(tmp_path, report())
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = parsed(html)
    assert page.loads == []
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in html
    assert "http:" not in html and "https:" not in html
    assert page.tags.count("svg") == 8
    assert len(page.ids) == len(set(page.ids)), "two drawings share an identifier"
    assert {reference[1:] for reference in page.references} <= set(page.ids)


def test_drawings_take_all_colors_from_the_page(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    for drawing in drawings:
        assert re.findall(r"(?:fill|stroke): #", drawing) == []
    defined = set(re.findall(r"(--[\w-]+):", html))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= defined


def test_title_says_what_was_deleted_how_near_to_retraining_and_how_fast(html: str) -> None:
    assert "287 samples unlearned in 4.7 ms" in html
    assert "In trials, 287 samples of 1,437 (20%) were deleted" in html
    assert "is 4% of the distance without unlearning" in html
    assert "digits &amp; &lt;co&gt;" in html
    assert "<co>" not in html


def test_every_plotted_number_stands_in_a_table(html: str) -> None:
    cells = set(re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", html))
    assert {"0.007", "0.17", "4%", "0.9981", "0.9972", "88.5%", "1.96", "44%"} <= cells


def test_report_json_keeps_the_keys_and_turns_infinity_into_null(tmp_path: Path) -> None:
    given = report(deletions=[entry(20, float("inf"))])
    returned = write_report(tmp_path, given)
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored == returned == read_report(tmp_path)
    assert set(stored) == set(given) | {"advice", "engine", "error_limit", "verdict"}
    assert stored["deletions"][0]["relative_error"] is None
    assert "the relative error is not defined" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


def test_report_without_trials_is_a_page_too() -> None:
    html = render(report(deletions=[], training_curve=[]) | {"advice": []})
    assert "no trial deletions" in html
    assert parsed(html).open == []


NOTHING = {"distance": 0.0, "no_update_distance": 0.0, "relative_error_range": [0.0, 0.0]}


@pytest.mark.parametrize(
    "changes",
    [
        {"deletions": [entry(5, 0.0, **NOTHING)]},
        {"deletions": [entry(5, 0.0, **NOTHING), entry(20)]},
        {"deletions": [entry(5, 30.0), entry(20, 250.0)]},
        {"deletions": [entry(5), entry(5)]},
        {"deletions": [entry(40, loss_change_points=[[0.0, 0.0]] * 40, loss_change_pearson=None)]},
        {"training_curve": [{"step": 0, "train_loss": 2.3, "test_accuracy": 0.1}]},
        {"train_seconds": 0.0, "precompute_seconds": 0.0, "deletions": [entry(5, sum_seconds=0.0)]},
    ],
)
def test_degenerate_figures_are_drawn_without_a_warning(changes: dict[str, Any]) -> None:
    page = parsed(render(report(**changes) | {"advice": []}))
    assert page.open == []
    assert page.tags.count("svg") >= 6


def test_large_relu_errors_name_the_smooth_activations(tmp_path: Path) -> None:
    bad = [entry(1, 0.6), entry(20, 1.2)]
    lines = write_report(tmp_path, report(deletions=bad))["advice"]
    assert any("tanh, silu or gelu" in line for line in lines)
    assert any("no nearer to retraining" in line for line in lines)
    assert "tanh, silu or gelu" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_no_advice_on_good_figures_nor_on_activations_that_are_smooth() -> None:
    assert advice(report()) == []
    smooth = report()["config"] | {"model": {"name": "mlp", "activation": "tanh"}}
    assert advice(report(deletions=[entry(20, 0.4)], config=smooth)) == []


def test_rows_stored_too_coarsely_are_named() -> None:
    assert any("storage.encoding" in line for line in advice(report(row_error_max=0.05)))


def test_missing_and_damaged_reports_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_report(tmp_path)
    for content in ("{", "[1]"):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(ConfigError, match="damaged"):
            read_report(tmp_path)


def test_terminal_table_shows_each_deletion() -> None:
    console = Console(file=io.StringIO(), width=160)
    console.print(deletion_table(report()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "287" in text and "20%" in text and "4.7 ms" in text and "0.9981" in text


def test_rendering_needs_no_model_factory() -> None:
    model = {"name": "a_module_that_is_not_here:factory", "activation": "relu"}
    html = render(report(config=report()["config"] | {"model": model}) | {"advice": []})
    assert "a_module_that_is_not_here:factory" in html

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire.number_formats import NUMBER_FORMATS, NumberFormat
from latentwire_batch.dataset.files import locate
from latentwire_batch.dataset.reader import StoredRow, stored_rows
from latentwire_batch.inspection.command import main
from latentwire_batch.inspection.findings import length_histogram, norm_profile, problems, thinned
from latentwire_batch.inspection.statistics import MAX_MEANS, Inspection, inspect_rows, project
from latentwire_batch.inspection.svg import Axis, bars
from latentwire_batch.tasks.results import RowText
from support.batch.collecting import Collect
from support.batch.dataset_oracle import tasks_of
from support.batch.encoded_tables import encode_file
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica

RNG = np.random.default_rng(0)


def row(task_id: str, latent: np.ndarray, *, is_ragged: bool = False) -> StoredRow:
    return StoredRow(RowText("task", task_id, "plan"), latent.astype(np.float32), is_ragged)


def write(path: Path, latents: list[list[list[float]]], **columns: list[str]) -> Path:
    count = range(len(latents))
    table = {name: [f"{name} {i}" for i in count] for name in ("task", "task_id", "plan")}
    table |= columns
    kind = pa.list_(pa.list_(pa.float32()))
    pq.write_table(pa.table({**table, "hidden_state": pa.array(latents, kind)}), path)
    return path


@pytest.fixture
def made(collect: Collect, stub: StubReplica, output: Path) -> Path:
    assert collect(replicas=[stub]).status == 0
    return output


@pytest.mark.parametrize("part", ["", "data.parquet", "hf_dataset"])
def test_every_form_of_an_output_is_read(
    made: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(made / part)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"rows +40\b", shown)
    assert re.search(r"hidden size +8\b", shown)
    assert "all values are finite, and no id occurs twice" in shown
    assert ("completion tokens" in shown) == (part == "")


@pytest.mark.parametrize("dtype", [dtype for dtype in NUMBER_FORMATS if dtype != "float32"])
def test_latents_in_every_number_format_are_inspected(
    made: Path, tmp_path: Path, dtype: NumberFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    path = encode_file(made / "data.parquet", dtype, tmp_path / "e.parquet")
    assert main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"number format +{dtype}\b", shown)
    assert re.search(r"hidden size +8\b", shown)
    assert ("rotated" in shown) == (dtype in ("int8", "int4"))


def test_a_dataset_without_latents_is_inspected_by_its_first_matrices(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(made / "data.parquet")
    table = table.rename_columns({"hidden_state": "hidden_state_comp"})
    pq.write_table(table, tmp_path / "r.parquet")
    assert main([str(tmp_path / "r.parquet")]) == 0
    shown = capsys.readouterr().out
    assert "hidden_state_comp, because there is no hidden_state" in shown
    assert re.search(r"hidden size +8\b", shown)


def test_matrices_besides_the_latent_are_inspected_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.parquet", [[[1, 2]], [[3, 4], [5, 6]]])
    kind = pa.list_(pa.list_(pa.float32()))
    values = pa.array([[[1.0, 2.0, 3.0]], [[1.0, float("nan"), 3.0]]], kind)
    table = pq.read_table(path).append_column("hidden_state_comp", values)
    pq.write_table(table, path)
    assert main([str(path)]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"column hidden_state_comp +float32; 2 rows, width 3", shown)
    assert "column hidden_state_comp holds values that are not finite, first in rows 1" in shown


def test_norms_are_those_of_numpy() -> None:
    latents = [RNG.standard_normal((n, 6)) for n in (4, 2, 0, 7)]
    found = inspect_rows(row(str(i), latent) for i, latent in enumerate(latents))
    norms = [np.linalg.norm(latent.astype(np.float32), axis=1) for latent in latents]
    for step in range(7):
        at_step = [n[step] for n in norms if len(n) > step]
        assert found.norms.means[step] == pytest.approx(np.mean(at_step), rel=1e-5)
        assert found.norms.deviations[step] == pytest.approx(np.std(at_step), rel=1e-3, abs=1e-5)
    assert list(found.lengths) == [4, 2, 0, 7]
    assert found.num_hidden_rows == 13


def test_values_that_are_not_finite_are_counted_and_their_rows_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan, inf = float("nan"), float("inf")
    path = write(tmp_path / "d.parquet", [[[1, 2]], [[nan, 1], [2, inf]], [[-inf, 3]]])
    assert main([str(path)]) == 1
    assert "1 values are NaN and 2 infinite, first in rows 1, 2" in capsys.readouterr().out


def test_repeated_ids_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.parquet", [[[1.0]]] * 5, task_id=["a", "b", "a", "c", "a"])
    assert main([str(path)]) == 1
    assert "2 rows repeat an earlier row's task_id, first rows 2, 4" in capsys.readouterr().out


def test_latent_rows_of_different_lengths_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", [[[1, 2], [3]], [[1, 2]], [[1, 2, 3]], []])
    found = problems(inspect_rows(stored_rows(locate(path))))
    assert found == [
        "1 rows hold latents whose rows differ in length, first in rows 0",
        "rows differ in hidden size: [2, 3]",
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.large_list(pa.float32())),
        pa.list_(pa.list_(pa.float32(), 2)),
        pa.list_(pa.list_(pa.float64())),
        pa.list_(pa.list_(pa.float16())),
    ],
)
def test_lists_of_every_kind_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    latents = [[[1.0, 2.0], [3.0, 4.0]], [], [[5.0, 6.0]]]
    pq.write_table(pa.table({"hidden_state": pa.array(latents, kind)}), tmp_path / "d.parquet")
    rows = list(stored_rows(locate(tmp_path / "d.parquet")))
    assert [r.latent.tolist() for r in rows] == latents


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"other": [1]}, "has no column hidden_state"),
        ({"hidden_state": [[1.0]]}, "is not a list of lists"),
        ({"hidden_state": [[["a"]]]}, "holds string"),
    ],
)
def test_another_schema_is_refused(
    tmp_path: Path,
    column: dict[str, list[object]],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pq.write_table(pa.table(column), tmp_path / "d.parquet")
    assert main([str(tmp_path / "d.parquet")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["absent", "text", "empty", "shards"])
def test_a_path_without_a_dataset_is_refused_and_not_quoted(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "shards" / "shard-00000-of-00002").mkdir(parents=True)
    assert main([str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) not in said
    assert ("holds shards: latentwire merge joins them" in said) == (name == "shards")


@pytest.mark.parametrize("content", ['{"id": "a", "task": "b"}\n', "# Title\n", ""])
def test_a_file_of_another_form_is_named_as_such(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks.jsonl").write_text(content)
    assert main([str(tmp_path / "tasks.jsonl")]) == 2
    message = "latentwire inspect: PATH: is neither a Parquet nor an Arrow file\n"
    assert capsys.readouterr().err == message


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]


def test_the_report_is_one_file_that_loads_nothing(made: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    assert main([str(made), "--html", str(html)]) == 0
    text = html.read_text()
    page = Page(text)
    assert page.tags.count("svg") == 3
    assert page.tags.count("rect") > 3
    assert page.tags.count("circle") == 40
    assert "polyline" in page.tags
    # Colours follow the scheme of the reader, and the third chart has numbers on its x axis.
    assert "hsl(" not in text
    last_chart = text[text.rindex("<svg") : text.rindex("</svg>")]
    assert len(re.findall(r'y="225\.0" text-anchor="(?:start|middle|end)">-?\d', last_chart)) == 3
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 15, 16, 17, 20])
def test_the_first_and_the_last_bar_have_labels_that_do_not_touch(count: int) -> None:
    chart = bars([(f"{900 + i}-{901 + i}", i % 2) for i in range(count)], Axis("length", "rows"))
    found = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle"( class="minor")?>\d+-', chart)
    for font, shown in ((10, found), (17, [place for place in found if not place[1]])):
        places = [float(x) for x, _ in shown]
        assert len(places) >= min(count, 2)
        assert places == sorted(places)
        width = 0.6 * font * len("900-901")
        assert all(right - left > width for left, right in zip(places, places[1:], strict=False))
    labels = re.findall(r">(\d+)-\d+</text>", chart)
    assert (labels[0], labels[-1]) == ("900", str(899 + count))
    # Numbers of rows are whole.
    assert not re.search(r'text-anchor="end">\d*\.\d', chart)


def test_texts_in_the_report_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$title')</script>"
    path = write(tmp_path / "d.parquet", [[[1.0, 2.0]]], task=[evil], task_id=["<b>"], plan=["&"])
    html = tmp_path / "report.html"
    assert main([str(path), "--html", str(html)]) == 0
    text = html.read_text()
    assert "script" not in Page(text).tags
    assert "&lt;script&gt;alert(&#x27;$title&#x27;)&lt;/script&gt;" in text
    assert ">&lt;b&gt;</td>" in text


@pytest.mark.parametrize("latents", [[], [[]], [[[1.0, 2.0]]], [[[1.0]], [[1.0]]]])
def test_the_smallest_datasets_have_a_report(
    tmp_path: Path, latents: list[list[list[float]]]
) -> None:
    path = write(tmp_path / "d.parquet", latents)
    assert main([str(path), "--html", str(tmp_path / "report.html")]) == (0 if latents else 1)


def test_a_dataset_without_rows_is_not_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path / "d.parquet", []))]) == 1
    shown = capsys.readouterr().out
    assert "the dataset holds no rows" in shown
    assert "all values are finite" not in shown


@pytest.mark.parametrize("part", ["", "data.parquet", "hf_dataset"])
@pytest.mark.parametrize("num_bad", [2, 40])
def test_a_dataset_with_failures_is_not_sound(
    collect: Collect,
    output: Path,
    tasks: Path,
    part: str,
    num_bad: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = [task for _, task in tasks_of(tasks)[:num_bad]]
    with StubReplica(Behaviour(task_faults={task: [422] for task in bad})) as stub:
        assert collect(replicas=[stub]).status == 3
    assert main([str(output / part)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{num_bad} of 40 rows are missing, because they failed: see failures.jsonl" in shown
    assert ("the dataset holds no rows" in shown) == (num_bad == 40)


def test_plans_that_a_limit_cut_are_counted(
    collect: Collect, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StubReplica(Behaviour(finish_reason="length")) as stub:
        assert collect(replicas=[stub]).status == 0
    assert json.loads((output / "manifest.json").read_text())["counts"]["cut_plans"] == 40
    card = (output / "README.md").read_text()
    assert "40 of 40 plans are cut: they reached a limit (`max_new_tokens` is 12)" in card
    assert main([str(output), "--html", str(tmp_path / "report.html")]) == 0
    assert re.search(r"plans cut by a limit +40 of 40", capsys.readouterr().out)
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<th>plans cut by a limit</th><td>40 of 40</td>" in report


@pytest.mark.parametrize("part", ["data.parquet", "hf_dataset"])
def test_a_lone_file_shows_its_model_and_settings(
    made: Path, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / part).rename(tmp_path / "lone")
    assert main([str(tmp_path / "lone")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "model stub" in shown
    assert "after the final norm" in shown
    assert "max_new_tokens 12" in shown
    assert "seed 7" in shown


@pytest.mark.parametrize(
    ("engine", "shown"),
    [
        ({"engine": "vllm", "engine_version": "0.32.0"}, "engine vllm 0.32.0 latent"),
        ({"engine": "latentwire", "engine_version": None}, "engine latentwire latent"),
        ({}, "model stub latent"),
    ],
)
def test_the_engine_of_the_rows_is_shown_where_it_is_named(
    made: Path, engine: dict[str, str | None], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["model"] = {
        name: value for name, value in manifest["model"].items() if not name.startswith("engine")
    } | engine
    (made / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(made)]) == 0
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("manifest", ["{", "[]", "{}", '{"model": 3}', '{"counts": {}}'])
def test_a_damaged_manifest_does_not_stop_the_inspection(made: Path, manifest: str) -> None:
    (made / "manifest.json").write_text(manifest)
    assert main([str(made)]) == 0


def test_projection_finds_the_directions_of_most_spread() -> None:
    inspection = Inspection()
    for i in range(50):
        centre = np.zeros(5)
        centre[3], centre[1] = i * 10.0, (-1) ** i
        inspection.add(row(str(i), np.tile(centre, (3, 1))))
    points = project(inspection.means)
    assert np.corrcoef(np.arange(50), points[:, 0])[0, 1] ** 2 == pytest.approx(1, abs=1e-4)
    assert np.ptp(points[:, 0]) > 100 * np.ptp(points[:, 1])


def test_memory_does_not_grow_with_the_rows() -> None:
    inspection = Inspection()
    latent = np.ones((1, 2))
    for i in range(MAX_MEANS + 500):
        inspection.add(row(str(i), latent))
    assert len(inspection.means) == MAX_MEANS
    assert len(inspection.samples) == 8
    assert len({sample.row for sample in inspection.samples}) == 8


def test_the_histogram_counts_every_row_once() -> None:
    lengths = [3, 3, 50, 117, 118]
    bins = length_histogram(inspect_rows(row(str(n), np.ones((n, 1))) for n in lengths))
    assert sum(item.count for item in bins) == 5
    assert (bins[0].low, bins[-1].high) == (3, 118)
    assert len(bins) <= 20


def test_the_norm_of_the_first_hidden_row_is_not_averaged() -> None:
    values = np.array([900.0, 1.0, 3.0, 5.0, 7.0])
    assert norm_profile(values, 3) == [(0, 900.0), (1, 2.0), (3, 6.0)]
    assert norm_profile(values[:1], 3) == [(0, 900.0)]
    assert norm_profile(values[:0], 3) == []
    assert norm_profile(np.array([np.nan, 2.0]), 3) == [(1, 2.0)]


def test_thinning_averages_neighbours() -> None:
    assert thinned(np.array([1.0, 3.0, np.nan, 5.0, np.nan]), 3) == [(0, 2.0), (2, 5.0)]

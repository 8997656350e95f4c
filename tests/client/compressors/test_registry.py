"""Compressors by name, with distributions of other people on the path."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from latentwire.compressors import (
    COMPRESSED,
    CompressorError,
    compressor_names,
    make_compressor,
    named_compressor,
)
from latentwire.compressors.training_free import TRAINING_FREE
from support.markdown import Page

# A whole compressor, as a stranger would write it: every second row.
HALF = """
    import numpy as np

    class Half:
        name = kind = "half"
        k = None
        parameters = {}
        content_hash = "0" * 64
        source_width = None
        output = "rows"

        def __init__(self, k):
            self.k = k

        def compress(self, rows):
            return {"hidden_state_comp": rows[::2][: self.k]}

        def decompress(self, arrays, num_rows):
            return np.repeat(arrays["hidden_state_comp"], 2, axis=0)[:num_rows]
"""


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, module: str, code: str, *entries: str) -> None:
        """Install a distribution of one module.

        Args:
            module: its name.
            code: of the module.
            entries: lines of the entry-point group.
        """
        self.modules.append(module)
        (self.folder / f"{module}.py").write_text(dedent(code), encoding="utf-8")
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8"
        )
        lines = "\n".join(entries or (f"half = {module}:Half",))
        (info / "entry_points.txt").write_text(
            f"[latentwire.compressors]\n{lines}\n", encoding="utf-8"
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    installed = Site(tmp_path)
    yield installed
    for module in installed.modules:
        sys.modules.pop(module, None)


def latent(num_rows: int = 9) -> Any:
    return np.random.default_rng(1).standard_normal((num_rows, 6)).astype(np.float32)


def half_with(**changes: object) -> str:
    """The module with other class attributes or methods; a value is source text."""
    lines = "".join(f"\n        {name} = {text}" for name, text in changes.items())
    return HALF + lines + "\n"


def test_the_built_in_names_come_first() -> None:
    expected = ["first", "last", "stride", "mean-pool", "svd", "dct", "novel"]
    assert compressor_names() == list(TRAINING_FREE) == expected


def test_a_package_adds_a_compressor(site: Site) -> None:
    site.install("theirs", HALF)
    assert compressor_names() == [*TRAINING_FREE, "half"]
    for make in (make_compressor, named_compressor):
        compressor = make("half", 3)
        rows = latent()
        result = compressor.compress(rows)
        np.testing.assert_array_equal(result[COMPRESSED], rows[[0, 2, 4]])
        # The package returned a view of the latent.
        assert not np.shares_memory(result[COMPRESSED], rows)
        assert result[COMPRESSED].flags.c_contiguous
        facts = (compressor.name, compressor.kind, compressor.k, compressor.output)
        assert facts == ("half", "half", 3, "rows")


def test_a_function_may_be_the_entry_point(site: Site) -> None:
    site.install(
        "theirs", HALF + "\n    def make(k):\n        return Half(k or 2)\n", "half = theirs:make"
    )
    assert make_compressor("half").k == 2
    assert len(make_compressor("half").compress(latent())[COMPRESSED]) == 2


def test_listing_runs_no_code_of_packages(site: Site) -> None:
    site.install("theirs", "raise RuntimeError('imported')")
    assert "half" in compressor_names()
    assert make_compressor("first", 3).k == 3
    assert "theirs" not in sys.modules


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise RuntimeError('broken')", "compressor half failed to load: RuntimeError: broken"),
        ("import sys; sys.exit(3)", "compressor half failed to load: SystemExit: 3"),
        ("import nowhere_at_all", "compressor half failed to load: ModuleNotFoundError"),
        ("x = (", "compressor half failed to load: SyntaxError"),
        ("Other = 1", "compressor half failed to load: AttributeError"),
        ("Half = 3", "compressor half failed to load: TypeError"),
        ("def Half(): pass", "compressor half failed to load: TypeError"),
        ("def Half(k): return None", "compressor half has a wrong name"),
        ("class Half:\n    def __init__(self, k): 1 / 0", "failed to load: ZeroDivisionError"),
        (half_with(name="'other'"), "compressor half calls itself other"),
        (half_with(name="'a b'"), "compressor half has a wrong name"),
        (half_with(kind="None"), "compressor half has a wrong kind"),
        (half_with(parameters="[1]"), "compressor half has a wrong parameters"),
        (half_with(parameters="{'x': float('nan')}"), "compressor half has a wrong parameters"),
        (half_with(parameters="{'x': object()}"), "compressor half has a wrong parameters"),
        (half_with(content_hash="'00'"), "compressor half has a wrong content_hash"),
        (half_with(source_width="0"), "compressor half has a wrong source_width"),
        (half_with(output="'words'"), "compressor half has a wrong output"),
        (half_with(k="property(lambda self: 1 / 0)"), "compressor half failed to load"),
    ],
)
def test_a_broken_package_is_reported_by_name_when_it_is_used(
    site: Site, code: str, text: str
) -> None:
    site.install("theirs", code)
    assert compressor_names() == [*TRAINING_FREE, "half"]
    with pytest.raises(CompressorError, match=re.escape(text)):
        make_compressor("half", 3)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("1 / 0", "compressor half failed to compress: ZeroDivisionError: division by zero"),
        ("rows[0] = 0", "compressor half failed to compress: ValueError"),
        ("return None", "compressor half failed to compress: TypeError"),
        ("return {'other': rows}", "compressor half returns no hidden_state_comp"),
        ("return {'hidden_state_comp': rows[0]}", "returns an array that must have two dimensions"),
        (
            "return {'hidden_state_comp': rows * np.nan}",
            "returns an array that row 0 is not finite",
        ),
        ("return {'hidden_state_comp': rows}", "compressor half returns 9 rows for a latent of 9"),
        ("return {'hidden_state_comp': rows[:3], 'A b': rows}", "an array of a wrong name"),
    ],
)
def test_what_a_package_returns_is_checked(site: Site, body: str, text: str) -> None:
    code = HALF + f"\n        def compress(self, rows):\n            {body}\n"
    site.install("theirs", code)
    with pytest.raises(CompressorError, match=re.escape(text)):
        make_compressor("half", 3).compress(latent())


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("1 / 0", "compressor half failed to decompress: ZeroDivisionError"),
        ("return arrays['hidden_state_comp']", "compressor half restores 3 rows instead of 9"),
        ("return None", "compressor half returns an array that must be numbers"),
    ],
)
def test_what_a_package_restores_is_checked(site: Site, body: str, text: str) -> None:
    code = HALF + f"\n        def decompress(self, arrays, num_rows):\n            {body}\n"
    site.install("theirs", code)
    compressor = make_compressor("half", 3)
    with pytest.raises(CompressorError, match=re.escape(text)):
        compressor.decompress(compressor.compress(latent()), 9)


def test_rows_of_another_width_never_reach_the_package(site: Site) -> None:
    site.install("theirs", half_with(source_width="7"))
    with pytest.raises(CompressorError, match="rows: must have the width 7, not 6"):
        make_compressor("half", 3).compress(latent())


def test_a_package_that_unlocks_the_rows_changes_its_own_copy(site: Site) -> None:
    body = (
        "rows = rows if rows.base is None else rows.base\n            rows.flags.writeable = True"
    )
    code = HALF + f"\n        def compress(self, rows):\n            {body}\n"
    code += "            rows[:] = 7\n            return {'hidden_state_comp': rows[:1]}\n"
    site.install("theirs", code)
    rows = latent()
    assert (make_compressor("half", 3).compress(rows)["hidden_state_comp"] == 7).all()
    np.testing.assert_array_equal(rows, latent())


def test_its_own_error_passes(site: Site) -> None:
    body = "raise CompressorError('is odd', 'rows')"
    code = HALF + f"\n        def compress(self, rows):\n            {body}\n"
    site.install("theirs", "    from latentwire import CompressorError\n" + code)
    with pytest.raises(CompressorError, match="^rows: is odd$"):
        make_compressor("half", 3).compress(latent())


def test_a_k_that_a_package_ignores_is_refused(site: Site) -> None:
    site.install("theirs", HALF.replace("self.k = k", "self.k = 9"))
    assert make_compressor("half").k == 9
    assert make_compressor("half", 9).k == 9
    with pytest.raises(CompressorError, match="k: compressor half cannot return at most 3 rows"):
        make_compressor("half", 3)


@pytest.mark.parametrize("k", [0, -1, 2**40])
def test_a_k_out_of_range_never_reaches_the_package(site: Site, k: int) -> None:
    site.install("theirs", "raise RuntimeError('imported')")
    with pytest.raises(CompressorError, match="^k: must be from 1 to 1048576, not"):
        make_compressor("half", k)


def test_the_package_that_the_docs_show_works(site: Site) -> None:
    page = Page("docs/compressors.md")
    (project,) = (tomllib.loads(block) for block in page.blocks("toml"))
    ((name, value),) = project["project"]["entry-points"]["latentwire.compressors"].items()
    module = value.partition(":")[0]
    (code,) = (block for block in page.blocks("python") if "class Longest" in block)
    assert f"`{module}`" in page.text
    site.install(module, code, f"{name} = {value}")
    compressor, rows = make_compressor(name, 3), latent()
    rows[4] = 0
    result = compressor.compress(rows)
    lengths = np.linalg.norm(rows, axis=1)
    places = result["places"][:, 0].astype(int)
    assert sorted(lengths[places]) == sorted(lengths)[-3:]
    restored = compressor.decompress(result, len(rows))
    np.testing.assert_array_equal(restored[places], rows[places])
    assert np.count_nonzero(restored.any(axis=1)) == 3
    assert make_compressor(name).k == 8
    assert compressor.compress(rows[:0])[COMPRESSED].shape == (0, 6)


def test_the_docs_have_a_row_for_each_built_in_compressor() -> None:
    page = Page("docs/compressors.md")
    names = [cell.strip("`") for cell in page.column("Name", 0)]
    assert names == list(TRAINING_FREE)
    outputs = [cell.strip("`") for cell in page.column("Name", 3)]
    assert outputs == [make_compressor(name, 1).output for name in names]


@pytest.mark.parametrize("name", [*TRAINING_FREE, "full"])
def test_no_package_replaces_a_built_in_name(site: Site, name: str) -> None:
    site.install("theirs", "raise RuntimeError('imported')", f"{name} = theirs:Half")
    assert compressor_names() == list(TRAINING_FREE)
    if name in TRAINING_FREE:
        assert make_compressor(name, 3).kind == name
    assert "theirs" not in sys.modules


@pytest.mark.parametrize("name", ["a/b", "-a", ".", "a@int8", "ä", "a" * 65])
def test_names_that_no_compressor_may_have_are_left_out(site: Site, name: str) -> None:
    site.install("theirs", HALF, f"{name} = theirs:Half")
    assert compressor_names() == list(TRAINING_FREE)
    with pytest.raises(CompressorError, match="^compressor: "):
        named_compressor(name, 3)


def test_two_packages_with_one_name_are_refused_when_it_is_used(site: Site) -> None:
    site.install("theirs", HALF)
    site.install("others", HALF)
    assert compressor_names().count("half") == 1
    with pytest.raises(CompressorError, match="compressor: 2 packages have a compressor half"):
        make_compressor("half", 3)


def test_a_broken_package_does_not_disturb_another(site: Site) -> None:
    site.install("theirs", "1 / 0", "wrong = theirs:Half")
    site.install("others", HALF)
    assert make_compressor("half", 3).k == 3


@pytest.mark.parametrize("name", ["nope", "", "First", "first ", "mean_pool", "x\0y", "a" * 5000])
def test_an_unknown_name_is_refused_with_the_list(name: str) -> None:
    for make in (named_compressor, make_compressor):
        with pytest.raises(CompressorError, match="first, last, stride, mean-pool") as raised:
            make(name, 3)
        assert raised.value.field == "compressor"
        assert len(str(raised.value)) < 300


def test_a_name_opens_no_directory(tmp_path: Path) -> None:
    # A service makes compressors of names that strangers send.
    with pytest.raises(CompressorError, match="compressor: must be one of first"):
        named_compressor(str(tmp_path), 3)


def test_a_name_wins_over_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path)
    assert make_compressor("first", 3).kind == "first"
    with pytest.raises(CompressorError, match="compressor.json cannot be read"):
        make_compressor("./first", 3)


def test_built_in_compressors_are_made_without_a_look_at_other_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(**_: object) -> None:
        raise AssertionError("a file of every installed package would be opened")

    monkeypatch.setattr("latentwire.compressors.registry.entry_points", look)
    for name in TRAINING_FREE:
        assert make_compressor(name, 2).name == named_compressor(name, 2).name == name

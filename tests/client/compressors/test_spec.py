"""`NAME|DIR[:K][@DTYPE]`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.compressors import CompressorError, CompressorSpec


@pytest.mark.parametrize(
    ("text", "given", "k", "dtype"),
    [
        ("mean-pool", "mean-pool", None, None),
        ("mean-pool:8", "mean-pool", 8, None),
        ("mean-pool@int8", "mean-pool", None, "int8"),
        ("mean-pool:8@int4", "mean-pool", 8, "int4"),
        ("outputs/pca", "outputs/pca", None, None),
        ("outputs/pca:16@bfloat16", "outputs/pca", 16, "bfloat16"),
        ("./mean-pool", "./mean-pool", None, None),
        # A slash at the end says that the rest belongs to the path.
        ("a@b/", "a@b/", None, None),
        ("a:8/", "a:8/", None, None),
        ("a@b/:4@int8", "a@b/", 4, "int8"),
        ("runs:v2/pca", "runs:v2/pca", None, None),
        ("pca@v1.2", "pca@v1.2", None, None),
        (r"C:\models\pca:8", r"C:\models\pca", 8, None),
        ("mean-pool:008", "mean-pool", 8, None),
    ],
)
def test_a_specification_has_these_parts(
    text: str, given: str, k: int | None, dtype: str | None
) -> None:
    assert CompressorSpec.parse(text) == CompressorSpec(given, k, dtype)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "compressor: must be like NAME:K or DIRECTORY"),
        (":8", ":8: must be like NAME:K or DIRECTORY"),
        ("@int8", "@int8: must be like NAME:K or DIRECTORY"),
        ("first:", "first:: k after the colon must be from 1 to 1048576"),
        ("first:0", "first:0: k after the colon must be from 1 to 1048576"),
        ("first:-1", "first:-1: k after the colon must be from 1 to 1048576"),
        ("first:x", "first:x: k after the colon must be from 1 to 1048576"),
        ("first:٣", "first:٣: k after the colon must be from 1 to 1048576"),
        ("first:99999999", "first:99999999: k after the colon must be from 1 to 1048576"),
        (f"first:{'9' * 5000}", "k after the colon must be from 1 to 1048576"),
        ("first@", "first@: the number format after @ must be one of float32, float16,"),
        ("first@int9", "first@int9: the number format after @ must be one of float32, float16,"),
        ("first@int8:8", "first@int8:8: the number format after @ must be one of"),
    ],
)
def test_a_wrong_specification_is_refused(text: str, message: str) -> None:
    with pytest.raises(CompressorError, match=re.escape(message)):
        CompressorSpec.parse(text)


def test_a_command_may_know_more_number_formats() -> None:
    known = ["int4", "int4-unrotated"]
    assert CompressorSpec.parse("full@int4-unrotated", known).dtype == "int4-unrotated"
    with pytest.raises(CompressorError, match="must be one of int4, int4-unrotated$"):
        CompressorSpec.parse("full@int8", known)


@given(
    name=st.from_regex("[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True),
    k=st.none() | st.integers(1, 1 << 20),
    dtype=st.sampled_from([None, "float16", "int4"]),
)
def test_a_specification_is_read_as_it_is_written(
    name: str, k: int | None, dtype: str | None
) -> None:
    spec = CompressorSpec(name, k, dtype)
    assert CompressorSpec.parse(str(spec)) == spec


def test_k_of_the_command_is_for_specifications_without_one() -> None:
    assert CompressorSpec.parse("first:4").make(8).k == 4
    assert CompressorSpec.parse("first").make(8).k == 8
    with pytest.raises(CompressorError, match="k: is required by compressor first"):
        CompressorSpec.parse("first").make()

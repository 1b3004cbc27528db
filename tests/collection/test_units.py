# SPDX-License-Identifier: Apache-2.0
import pytest
from ansible_collections.lepton.cloud.plugins.module_utils._units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("512M", 512 << 20), ("1.5 G", 3 << 29), ("1048576", 1 << 20), ("2kb", 2048), ("1tib", 1 << 40)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GiB", "-1G", "1 0G", "8GiBB", "٣G", "1e3M", "8G; rm"])
def test_what_is_no_size_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number with a unit"):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1537, 200 << 20, 8 << 30])
def test_a_formatted_size_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size

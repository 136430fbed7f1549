"""TFRecord: framing and checksums, by the library's own files and by files that were damaged byte by byte."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generalist.data.formats.faults import BrokenRecord
from generalist.data.formats.tfrecord import FOOTER, HEADER, Record, framed, masked_crc, payload, records

FOLDER = Path(__file__).parents[2] / "fixtures" / "formats" / "rlds_tfrecord" / "small_bridge" / "0.1.0"


def test_masked_checksum_as_in_tensorflow() -> None:
    # RFC 3720, appendix B.4: crc32c of 32 bytes of zero is 0x8A9136AA; masked as tensorflow/core/lib/hash/crc32c.h says.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_files_of_tensorflow_are_read() -> None:
    counts = []
    for file in sorted(FOLDER.glob("*.tfrecord-*")):
        found = [*records(file)]
        assert all(len(payload(file, record)) == record.size for record in found)
        counts.append(len(found))
    assert counts == [2, 3, 2]


@given(contents=st.lists(st.binary(max_size=40), max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    file = tmp_path_factory.mktemp("framed") / "a.tfrecord"
    file.write_bytes(b"".join(map(framed, contents)))
    assert [payload(file, record) for record in records(file)] == contents


def read_all(file: Path) -> list[bytes]:
    return [payload(file, record) for record in records(file)]


def test_every_flipped_bit_is_named_with_file_and_offset(tmp_path: Path) -> None:
    contents = [b"first record", b"", b"the third"]
    whole = b"".join(map(framed, contents))
    starts = np.cumsum([0, *(len(framed(content)) for content in contents)])
    file = tmp_path / "a.tfrecord"
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(damaged)
        hit = int(np.searchsorted(starts, bit // 8, side="right")) - 1
        with pytest.raises(BrokenRecord, match=rf"a\.tfrecord, offset {starts[hit]}:"):
            read_all(file)


def test_every_cut_is_named(tmp_path: Path) -> None:
    whole = b"".join(map(framed, [b"first record", b"second"]))
    boundary = len(framed(b"first record"))
    file = tmp_path / "a.tfrecord"
    for end in range(1, len(whole)):
        file.write_bytes(whole[:end])
        if end == boundary:
            assert read_all(file) == [b"first record"]
            continue
        with pytest.raises(BrokenRecord, match=rf"offset {0 if end < boundary else boundary}: the file ends"):
            read_all(file)


def test_length_beyond_any_record_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    length = (2**62).to_bytes(8, "little")
    (tmp_path / "a").write_bytes(length + FOOTER.pack(masked_crc(length)) + bytes(100))
    with pytest.raises(BrokenRecord, match="larger than any"):
        [*records(tmp_path / "a")]


def test_file_that_changed_after_it_was_indexed(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(framed(b"old"))
    (record,) = records(file)
    file.write_bytes(framed(b"longer than before"))
    with pytest.raises(BrokenRecord, match="has changed"):
        payload(file, record)
    with pytest.raises(BrokenRecord, match="has changed"):
        payload(file, Record(record.offset + HEADER.size + 25, 3))

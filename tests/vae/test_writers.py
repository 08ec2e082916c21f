"""Files are whole or absent, and numbers that a format lacks are left out."""

import csv
import json
import math
import os
import struct

import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vae import writers


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with writers.whole(path) as file:
        file.write("é\n")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), writers.whole(path) as file:
        file.write("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


VALUES = {
    "nan": math.nan,
    "inf": -math.inf,
    "numpy": np.float32("nan"),
    "array": np.array([1.5, np.inf], np.float32),
    "inside": [1, (2.0, math.nan), {"x": np.int64(3)}],
    "flag": np.bool_(True),
    "text": 'ü"\n</script>',
    "nothing": None,
}
PLAIN = {
    "nan": None,
    "inf": None,
    "numpy": None,
    "array": [1.5, None],
    "inside": [1, [2.0, None], {"x": 3}],
    "flag": True,
    "text": 'ü"\n</script>',
    "nothing": None,
}


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_json_has_null_for_numbers_that_it_lacks(tmp_path):
    writers.write_json(tmp_path / "a.json", VALUES)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == PLAIN


def test_jsonl_is_an_object_a_line_and_comes_back(tmp_path):
    path = tmp_path / "a.jsonl"
    writers.write_jsonl(path, [VALUES, {"step": 2}])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [PLAIN, {"step": 2}]
    assert writers.read_jsonl(path) == [PLAIN, {"step": 2}]
    assert writers.read_jsonl(tmp_path / "absent.jsonl") == []


def test_float32_survives_json_exactly(tmp_path):
    # Resuming reads earlier readings from their file; they must not change by that.
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    writers.write_jsonl(tmp_path / "a.jsonl", [{"x": float(v)} for v in values])
    back = [record["x"] for record in writers.read_jsonl(tmp_path / "a.jsonl")]
    assert np.array_equal(np.array(back, np.float32), values)


HOSTILE = ["a,b", 'say "hi"', "two\nlines", "<script>alert(1)</script>", "=1+1", " padded ", "ß"]


def test_csv_brings_hostile_text_back(tmp_path):
    path = tmp_path / "a.csv"
    rows = [{"name, quoted": text, "number": 0.1} for text in HOSTILE]
    writers.write_csv(path, ["name, quoted", "number", "absent"], rows)
    with open(path, newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["name, quoted"] for row in read] == HOSTILE
    assert {row["number"] for row in read} == {"0.1"}
    assert {row["absent"] for row in read} == {""}


def test_csv_cells(tmp_path):
    row = {"null": None, "nan": math.nan, "list": (64, 32), "flag": True, "int": np.int32(3)}
    writers.write_csv(tmp_path / "a.csv", list(row), [row])
    header, cells = csv.reader((tmp_path / "a.csv").read_text().splitlines())
    assert dict(zip(header, cells, strict=True)) == {
        "null": "",
        "nan": "",
        "list": "[64, 32]",
        "flag": "true",
        "int": "3",
    }


@pytest.mark.parametrize(
    "write",
    [
        lambda path, x: writers.write_json(path, {"x": x}),
        lambda path, x: writers.write_csv(path, ["x"], [{"x": x}]),
    ],
    ids=["json", "csv"],
)
def test_a_file_that_says_it_already_is_left_alone(tmp_path, write):
    path = tmp_path / "file"
    write(path, 1)
    before = path.stat()
    write(path, 1)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write(path, 2)
    assert path.stat().st_ino != before.st_ino
    assert "2" in path.read_text()


def test_npz(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.int32), "b": np.array([np.nan], np.float32)}
    writers.write_npz(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert {name: read[name].tobytes() for name in read} == {
            name: array.tobytes() for name, array in arrays.items()
        }


def masked(data):
    """The checksum of a TFRecord: CRC-32C, rotated right by 15 bits, plus a constant."""
    value = crc32c(data) & 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
    """The events of a TensorBoard file, checksums verified."""
    content, position, found = path.read_bytes(), 0, []
    while position < len(content):
        length, check = struct.unpack_from("<QI", content, position)
        assert check == masked(content[position : position + 8])
        data = content[position + 12 : position + 12 + length]
        assert struct.unpack_from("<I", content, position + 12 + length)[0] == masked(data)
        found.append(Event.FromString(data))
        position += length + 16
    return found


def scalars(event):
    return {value.tag: value.simple_value for value in event.summary.value}


def test_tensorboard_has_the_finite_numbers_of_each_run(tmp_path):
    board = writers.TensorBoard(tmp_path)
    board.write("a", {"step": 10, "train/loss": 1.5, "test/elbo": math.nan})
    board.write("b", {"step": 10, "train/loss": 2.5})
    # Readable while training goes on, and after a crash: nothing waits in a buffer.
    (file,) = (tmp_path / "a").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    board.write("a", {"step": 20, "train/loss": 0.5})
    version, start, *readings = events(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (10, SessionLog.START)
    assert [(e.step, scalars(e)) for e in readings] == [
        (10, {"train/loss": 1.5}),
        (20, {"train/loss": 0.5}),
    ]
    (other,) = (tmp_path / "b").iterdir()
    assert [scalars(e) for e in events(other)[2:]] == [{"train/loss": 2.5}]


def test_tensorboard_goes_on_where_the_clock_is_behind(tmp_path, monkeypatch):
    """A run resumed on a node whose clock is behind: files are read in the order of their names."""
    for now in (2_000_000_000, 1_900_000_000, 1_900_000_001):
        monkeypatch.setattr(writers.time, "time", lambda now=now: float(now))
        monkeypatch.setattr(writers.platform, "node", lambda now=now: f"a{-now}")
        writers.TensorBoard(tmp_path).write("run", {"step": now, "a": 1.0})
    names = sorted(file.name for file in (tmp_path / "run").iterdir())
    stamps = ("2000000000", "2000000001", "2000000002")
    assert [name.split(".")[3:5] for name in names] == [
        [stamp, f"a{-now}"]
        for stamp, now in zip(stamps, (2_000_000_000, 1_900_000_000, 1_900_000_001), strict=True)
    ]


def test_tensorboard_of_thousands_of_runs_holds_no_files_open(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    board = writers.TensorBoard(tmp_path)
    board.write("first", {"step": 1, "train/loss": 1.0})  # imports, which open files
    allowed = max(map(int, os.listdir("/dev/fd"))) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    try:
        for run in range(100):
            board.write(str(run), {"step": 1, "train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(tmp_path.iterdir())) == 101

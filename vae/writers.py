"""Files written whole: temporary name, then rename, so that a reader never sees half of one."""

import contextlib
import csv
import io
import json
import math
import os
import pathlib
import platform
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vae.errors import FULL


@contextlib.contextmanager
def whole(path: pathlib.Path, mode: str = "w") -> Iterator[Any]:
    """A file that appears under `path` when the block ends well, and never in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The node too: on a disk that nodes share, two processes may have the same number.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode, encoding=encoding, newline=None if "b" in mode else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    with whole(path) as file:
        file.write(text)


def _write_new(path: pathlib.Path, text: str) -> None:
    """Writes a text unless the file has it already: what is finished keeps its time."""
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Indented JSON; numbers that JSON lacks (nan, inf) are written as null."""
    _write_new(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line, as `write_json` writes numbers."""
    lines = (json.dumps(plain(record), ensure_ascii=False) for record in records)
    write_text(path, "".join(line + "\n" for line in lines))


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; none where it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_csv(
    path: pathlib.Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """A table; what a row lacks, and what is null or not finite, is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (plain(row.get(name)) for name in columns)
        writer.writerow("" if cell is None else _cell(cell) for cell in cells)
    _write_new(path, buffer.getvalue())


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    with whole(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def plain(value: Any) -> Any:
    """`value` as JSON has it: NumPy scalars and arrays unpacked, non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class TensorBoard:
    """Live curves, such as `train/rate`: one event file for each run, made at its first record.

    The file is open only while a record is appended. A writer of tensorboardX would hold a
    thread, a pipe and a file for each run, and a population may have thousands of runs. A full
    disk delays records, and ends nothing.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._files: dict[str, pathlib.Path] = {}
        self._unwritten: dict[str, bytes] = {}

    def write(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Appends the finite numbers of a record {"step": ..., name: value} of one run."""
        from tensorboardX.proto import event_pb2, summary_pb2

        step, now = record["step"], time.time()
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        ]
        events = [event_pb2.Event(wall_time=now, step=step, summary={"value": values})]
        if run_id not in self._files:
            folder = self._folder / run_id
            # TensorBoard takes the files of a run in the order of their names: a run that goes on
            # on a node whose clock is behind must not come before its own beginning.
            stamps = [int(f.name.split(".")[3]) for f in folder.glob("events.out.tfevents.*")]
            stamp = max([int(now), *(stamp + 1 for stamp in stamps)])
            name = f"events.out.tfevents.{stamp:010d}.{platform.node()}.{os.getpid()}"
            self._files[run_id] = folder / name
            # What a killed process wrote after its last checkpoint is superseded from here on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            events = [
                event_pb2.Event(wall_time=now, file_version="brain.Event:2"),
                event_pb2.Event(wall_time=now, step=step, session_log=start),
                *events,
            ]
        # What found no room goes with the next record.
        data = self._unwritten.pop(run_id, b"")
        data += b"".join(_tf_record(event.SerializeToString()) for event in events)
        if not _append(self._files[run_id], data):
            self._unwritten[run_id] = data


def _append(path: pathlib.Path, data: bytes) -> bool:
    """Appends all of it, or, where the disk is full, nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            end = file.tell()
            done = file.write(data) == len(data)
            if not done:
                file.truncate(end)
            return done
    except OSError as error:
        if error.errno not in FULL:
            raise
        return False


def _tf_record(data: bytes) -> bytes:
    """The framing of a TFRecord: length, its checksum, the data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)

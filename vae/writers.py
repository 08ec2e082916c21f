"""Files written whole: temporary name, then rename, so that a reader never sees half of one."""

import contextlib
import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


@contextlib.contextmanager
def whole(path: pathlib.Path, mode: str = "w") -> Iterator[Any]:
    """A file that appears under `path` when the block ends well, and never in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def write_json(path: pathlib.Path, value: Any) -> None:
    """Indented JSON; numbers that JSON lacks (nan, inf) are written as null."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line, as `write_json` writes numbers."""
    lines = (json.dumps(plain(record), ensure_ascii=False) for record in records)
    write_text(path, "".join(line + "\n" for line in lines))


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; none where it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_csv(path: pathlib.Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A table; what a row lacks, and what is null or not finite, is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (plain(row.get(name)) for name in columns)
        writer.writerow("" if cell is None else _cell(cell) for cell in cells)
    write_text(path, buffer.getvalue())


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
    """Live curves: one writer a run, made at its first scalar. `train/rate` and its like."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Writes the finite numbers of a record {"step": ..., name: value} of one run."""
        from tensorboardX import SummaryWriter

        step = record["step"]
        if run_id not in self._writers:
            # What a killed process wrote after its last checkpoint is superseded from here on.
            self._writers[run_id] = SummaryWriter(
                str(self._folder / run_id), purge_step=step, max_queue=1000
            )
        for name, value in record.items():
            if name != "step" and isinstance(value, float) and math.isfinite(value):
                self._writers[run_id].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

"""A listing of images as a source: CSV, TSV or JSON lines of a path and its label or labels."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data_pipeline.listing import Lister, Listing, choose

PATH_COLUMNS = ("path", "image", "file")
LABEL_COLUMNS = ("label", "class", "labels")
MANY_LABELS = "labels"  # the column that makes a multi-label set
LABEL_SEPARATOR = "|"

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = ".jsonl"
ENDINGS = (*_DELIMITERS, _JSON_LINES)


@dataclass(frozen=True)
class ListingFile:
    """FILE.csv, .tsv (with a header line) or .jsonl: columns path|image|file and label|class, or labels.

    Paths are relative to the file's folder, labels are names of classes. A column `labels` (in CSV and TSV separated
    by |, in JSON a list) makes a multi-label set."""

    file: Path

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """See Source; ValueError naming the line that is wrong."""
        # A path that is no UTF-8 keeps its bytes.
        with self.file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = self._json_rows(file) if self.file.suffix == _JSON_LINES else self._table_rows(file)
            return self._collect(rows, classes)

    def read(self, name: bytes) -> bytes:
        """See Source."""
        return self._path(name).read_bytes()

    def size_bytes(self, name: bytes) -> int:
        """See Source."""
        try:
            return self._path(name).stat().st_size
        except OSError:
            return 0  # read() will fail too, and say why

    def _path(self, name: bytes) -> Path:
        return self.file.parent / os.fsdecode(name)

    def _collect(self, rows: Iterator[tuple[int, str, list[str], bool]], classes: Sequence[str] | None) -> Listing:
        lister = None
        for line, path, labels, multi_label in rows:
            if lister is None:
                if not self._path(os.fsencode(path)).is_file():
                    raise ValueError(f"{self.file}:{line}: no file {path!r}; paths are relative to {self.file.parent}")
                lister, first_kind = Lister(classes, multi_label), multi_label
            if multi_label != first_kind:
                raise ValueError(f"{self.file}:{line}: some images have a label and some have labels; use one kind")
            if not path:
                raise ValueError(f"{self.file}:{line}: no path; every line names an image")
            if not all(labels):
                raise ValueError(f"{self.file}:{line}: no label for {path!r}; every image has the name of its class")
            if len(set(labels)) < len(labels):
                raise ValueError(f"{self.file}:{line}: {path!r} has a label twice: {', '.join(labels)}")
            lister.add(os.fsencode(path), labels)
        if lister is None:
            raise ValueError(f"{self.file}: no images in it; each line is a path and its label")
        choose(lister.found, classes)
        return lister.listing()

    def _table_rows(self, file: TextIO) -> Iterator[tuple[int, str, list[str], bool]]:
        table = csv.reader(file, delimiter=_DELIMITERS[self.file.suffix], strict=True)
        try:
            header = [name.strip().lower() for name in next(table, [])]
            path_column, label_column = (self._column(header, names) for names in (PATH_COLUMNS, LABEL_COLUMNS))
            path_at, label_at = header.index(path_column), header.index(label_column)
            for row in table:
                if not row:
                    continue
                if len(row) <= max(path_at, label_at):
                    raise ValueError(f"{self.file}:{table.line_num}: {len(row)} columns, the header has {len(header)}")
                text = row[label_at]
                if label_column == MANY_LABELS:
                    yield table.line_num, row[path_at], text.split(LABEL_SEPARATOR) if text else [], True
                else:
                    yield table.line_num, row[path_at], [text], False
        except csv.Error as error:
            raise ValueError(
                f"{self.file}:{table.line_num}: {error}; write it as CSV with quotes around commas"
            ) from None

    def _json_rows(self, file: TextIO) -> Iterator[tuple[int, str, list[str], bool]]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{self.file}:{number}: not a line of JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f'{self.file}:{number}: not an object such as {{"path": "1.jpg", "label": "cat"}}')
            path = row[self._column(list(row), PATH_COLUMNS, number)]
            column = self._column(list(row), LABEL_COLUMNS, number)
            labels = row[column] if column == MANY_LABELS else [row[column]]
            # A number that a program wrote as a class is the name of one.
            if not isinstance(labels, list) or not all(type(label) in (str, int) for label in labels):
                raise ValueError(f"{self.file}:{number}: {column} = {row[column]!r}; names of classes are texts")
            if not isinstance(path, str):
                raise ValueError(f"{self.file}:{number}: path = {path!r}; it is a text")
            yield number, path, [str(label) for label in labels], column == MANY_LABELS

    def _column(self, columns: Sequence[str], names: Sequence[str], line: int = 1) -> str:
        found = [name for name in names if name in columns]
        if len(found) != 1:
            many = f"more than one of {', '.join(found)}" if found else f"no column {', '.join(names)}"
            raise ValueError(
                f"{self.file}:{line}: {many} among {', '.join(columns[:10])}; it needs one path and one label"
            )
        return found[0]

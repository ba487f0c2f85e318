"""The documents of source files, through datatrove.

datatrove's own JSON-lines reader logs and drops a line it cannot parse, and it has no reader of plain text; the reader here raises, and
knows what a document is in a .txt file. fsspec's zstd ends without a word at a cut file and after a file's first frame; Arrow's does not.
"""

import ast
import io
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, override

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader

from gristmill.config import FilesSource
from gristmill.errors import SourceError
from gristmill.text.sources import PARQUET_SUFFIXES, TEXT_SUFFIXES, Located

type DocumentKind = Literal["file", "line", "paragraph", "row"]


def read(located: Located, source: FilesSource | None, index: int) -> Iterator[str]:
    """The texts of one file of a source, in order; a text may be empty.

    Raises:
        SourceError: the file is not what its name says, or has no text column.
    """
    url = located.urls[index]
    folder, _, name = url.rpartition("/")
    try:
        if source is None:
            yield from _docstrings(Path(url))
            return
        for document in _reader(folder, name, source, len(located.urls)).read_file(name):
            yield document.text
    except (ValueError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's; damaged bytes have no number
        raise SourceError(
            f"{url} cannot be read",
            found=str(error).splitlines()[0],
            expected="UTF-8 text, JSON lines or parquet, as the file's name says",
            next_step="repair or remove the file",
        ) from error


def _reader(folder: str, name: str, source: FilesSource, file_count: int) -> BaseDiskReader:
    if name.endswith(PARQUET_SUFFIXES):
        return _StrictParquetReader(folder, text_key=source.text_column, id_key=source.text_column, read_metadata=False)
    if name.endswith(TEXT_SUFFIXES):
        auto = "paragraph" if file_count == 1 else "file"
        return _LineReader(folder, auto if source.document == "auto" else source.document)
    return _LineReader(folder, "row", text_key=source.text_column)


class _StrictReader(BaseDiskReader):
    """datatrove drops a document without text with a line in its log; here a missing text raises and an empty one is handed on."""

    @override
    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document:
        text = data.get(self.text_key)
        if not isinstance(text, str):
            raise self.no_text(source_file, f"row {id_in_file}", data, f"{self.text_key} is {type(text).__name__}")
        return Document(text, str(id_in_file))

    def no_text(self, source_file: str, place: str, columns: Iterable[str], found: str) -> SourceError:
        """The error for a place where the text column holds no string."""
        return SourceError(
            f"{self.data_folder.resolve_paths(source_file)} has no text in {place}",
            found=f"columns {', '.join(sorted(columns)) or 'none'}; {found}",
            expected=f"a string in the column {self.text_key}",
            next_step="set text_column to the column that holds the text",
        )


class _StrictParquetReader(_StrictReader, ParquetReader):
    """Parquet, strictly."""

    @override
    def read_file(self, filepath: str) -> Generator[Document]:
        with self.data_folder.open(filepath, "rb") as file:
            columns = pq.read_schema(file).names
        if self.text_key not in columns:
            raise self.no_text(filepath, "any row", columns, f"no {self.text_key}")
        yield from super().read_file(filepath)


class _LineReader(_StrictReader):
    """Plain text and JSON lines, strictly: what cannot be read raises."""

    def __init__(self, folder: str, kind: DocumentKind, text_key: str = "text") -> None:
        super().__init__(folder, text_key=text_key)
        self.kind = kind

    @override
    def read_file(self, filepath: str) -> Iterator[Document]:
        with self.data_folder.open(filepath, "rb") as stored, _text(stored, filepath) as file:
            if self.kind == "file":
                yield Document(file.read(), filepath)
            elif self.kind == "paragraph":
                yield from (Document(text, filepath) for text in _paragraphs(file))
            elif self.kind == "line":
                yield from (Document(line.rstrip("\r\n"), filepath) for line in file if line.strip())
            else:
                yield from (self.get_document_from_dict(_json_object(line, row), filepath, row) for row, line in enumerate(file))


def _text(stored: Any, name: str) -> io.TextIOWrapper:
    codec = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2])
    plain = io.BufferedReader(pa.CompressedInputStream(stored, codec)) if codec else stored
    return io.TextIOWrapper(plain, encoding="utf-8-sig", newline="\n")


def _json_object(line: str, row: int) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"line {row + 1}: {error.msg} at column {error.colno}") from error
    if not isinstance(found, dict):
        raise ValueError(f"line {row + 1}: a {type(found).__name__} where a JSON object was expected")  # noqa: TRY004  # bytes, not a bug
    return found


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Runs of lines between blank ones, without their last newline."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).rstrip("\r\n")
            paragraph = []
    if paragraph:
        yield "".join(paragraph).rstrip("\r\n")


def _docstrings(path: Path) -> Iterator[str]:
    """The documentation in a module of the standard library: one text of all its docstrings, and the language reference's topics apart."""
    module = ast.parse(path.read_bytes())
    if path.parts[-2:] == ("pydoc_data", "topics.py"):
        (topics,) = (node.value for node in module.body if isinstance(node, ast.Assign))
        yield from ast.literal_eval(topics).values()
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(module) if isinstance(node, documented)]
    text = "\n\n".join(text for text in texts if text)
    if text:
        yield text

"""Where a corpus lies: on this machine (`pathlib.Path`), or in an object store (`ObjectPath`)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import quote

from lclm_rag.connectors.corpora.problems import first_line
from lclm_rag.errors import CorpusError

if TYPE_CHECKING:
    from pyarrow import fs

__all__ = ["COMPRESSIONS", "Location", "ObjectPath", "is_uri", "locate", "open_bytes"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ObjectPath:
    """A file or folder in an object store, with what readers need of `pathlib.Path`.

    path: as `filesystem` names it, "bucket/folder/name". is_folder: where a listing has told.
    Methods raise OSError.
    """

    scheme: str
    filesystem: fs.FileSystem
    path: str
    is_folder: bool | None = None

    def __str__(self) -> str:
        """Without the secrets and options that the user's URI may hold."""
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> ObjectPath:
        return replace(self, path=f"{self.path}/{name}" if self.path else name, is_folder=None)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))

    @property
    def parent(self) -> ObjectPath:
        return replace(self, path=self.path.rpartition("/")[0], is_folder=None)

    def exists(self) -> bool:
        return self._type() != "NotFound"

    def is_dir(self) -> bool:
        return self._type() == "Directory" if self.is_folder is None else self.is_folder

    def is_file(self) -> bool:
        return self._type() == "File" if self.is_folder is None else not self.is_folder

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator[ObjectPath]:
        from pyarrow import fs

        for info in self.filesystem.get_file_info(fs.FileSelector(self.path)):
            yield replace(self, path=info.path, is_folder=info.type == fs.FileType.Directory)

    def _type(self) -> str:
        return str(self.filesystem.get_file_info(self.path).type.name)

    def open(self, mode: str = "rb") -> BinaryIO:
        """For reading from front to back, packed as it is."""
        stream = self.filesystem.open_input_stream(self.path, compression=None)
        return cast(BinaryIO, io.BufferedReader(stream, _BUFFER_BYTES))


Location = Path | ObjectPath


def is_uri(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def locate(text: str) -> Location:
    """A path, or the file or folder that a URI names. CorpusError for a URI that cannot be read."""
    if not is_uri(text):
        return Path(text)
    from pyarrow import ArrowException, fs

    scheme = text.partition("://")[0].lower()
    try:
        # Spaces and letters beyond ASCII as they are; % is taken for an escape that is there already.
        uri = quote(text.rstrip("/"), safe=":/?#[]@!$&'()*+,;=%~")
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, ArrowException) as error:
        bare = re.sub(r"//[^/]*@", "//", text.partition("?")[0])
        reason = first_line(error).replace(text, bare).partition(": ")[0]
        raise CorpusError(
            f"{bare}: cannot be read ({reason}); give a path or a URI that begins with s3://, gs://, "
            "abfs://, file:// or hf://, without wildcards other than *."
        ) from error
    if isinstance(filesystem, fs.LocalFileSystem):
        return Path(path)
    return ObjectPath(scheme, filesystem, path)


def open_bytes(location: Location) -> BinaryIO:
    """The file's bytes from front to back, unpacked where its name ends in .gz or .zst.

    OSError, where it is opened or read, also for a packed file that is damaged or not whole.
    """
    packed = location.open("rb")
    compression = COMPRESSIONS.get(location.suffix.lower())
    if compression is None:
        return packed
    import pyarrow as pa

    # Takes files of several members (as of `cat a.gz b.gz`), and notices one that was cut off.
    stream = pa.CompressedInputStream(packed, compression)
    return cast(BinaryIO, io.BufferedReader(stream, _BUFFER_BYTES))

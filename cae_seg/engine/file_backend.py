"""mmengine's local file backend, whose files are either complete or absent."""

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from cae_seg.files import atomic_writer


@register_backend("local", prefixes="", force=True)
class AtomicLocalBackend(LocalBackend):
    """`LocalBackend` that writes to a temporary file, flushes it to the disk and renames it."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        with atomic_writer(Path(filepath)) as stream:
            stream.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text to a file."""
        self.put(obj.encode(encoding), filepath)

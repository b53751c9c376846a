"""GPU code inside a shared library: find it, and cut out what one GPU and one program do not need.

nvcc puts GPU code into a library as "fat binaries". A fat binary holds one image for each architecture that the library
was built for. Most of a GPU library's size is such images.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
"""First bytes of a fat binary: magic number (u32), version (u16), size of this header (u16)"""
HEADER_BYTES = 16
"""The magic bytes, then the size of all images (u64)"""


@dataclass(frozen=True)
class Image:
    """GPU code for one architecture. Offsets count bytes from the start of the library."""

    start: int
    payload: int
    """Offset of the code, after the image's own header"""
    code_end: int
    end: int
    """End of the image; compressed code has some bytes of padding before it"""
    architecture: int
    """90 for compute capability 9.0"""


def fat_binaries(library: bytes) -> Iterator[tuple[int, list[Image]]]:
    """Yield the offset and the images of each fat binary of a library.

    An image has a header (kind u16, version u16, header size u32, payload size u64, compressed size u32 or 0, ...,
    architecture u32 at byte 28) and a payload, which is a cubin: an ELF file, sometimes compressed by zstd.
    """
    start = 0
    while (start := library.find(MAGIC, start)) >= 0:
        (size,) = struct.unpack_from("<Q", library, start + 8)
        images, offset, end = [], start + HEADER_BYTES, start + HEADER_BYTES + size
        while offset < end:
            _, _, header, payload, compressed = struct.unpack_from("<HHIQI", library, offset)
            (architecture,) = struct.unpack_from("<I", library, offset + 28)
            code = offset + header
            images.append(Image(offset, code, code + (compressed or payload), code + payload, architecture))
            offset = images[-1].end
        yield start, images
        start = end


def kernel_names(cubin: bytes) -> list[str]:
    """Return the mangled names of a cubin's kernels: the sections `.text.NAME` of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_section = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<I20xQ", cubin, table + number * size) for number in range(count)]
    names = []
    for name_offset, _ in sections:
        first = sections[names_section][1] + name_offset
        text = cubin[first : cubin.index(b"\0", first)]
        if text.startswith(b".text."):
            names.append(text[6:].decode())
    return names


@dataclass(frozen=True)
class Needs:
    """The GPU code that stays in a library."""

    architecture: int
    unused_libraries: tuple[str, ...] = ()
    """Ends of the names of libraries whose GPU code is not needed at all"""
    unused_kernels: re.Pattern[str] = re.compile("(?!)")
    """Found in the names of kernels that are not needed; by default no kernel is left out"""

    def kernels(self, names: list[str]) -> bool:
        """Return whether an image with these kernels is needed. An image without kernels holds variables: it stays."""
        real = [name for name in names if "EmptyKernel" not in name]
        return not real or any(not self.unused_kernels.search(name) for name in real)


def trim(name: str, library: bytearray, needs: Needs, decompress: Callable[[bytes], bytes]) -> list[tuple[int, int]]:
    """Move the needed images of each fat binary to its front, in place; return (start, size) of the blank parts.

    Nothing else of the library moves. Each fat binary looks as if it had been built for fewer architectures. One that
    has no needed image keeps an image of another architecture, the smallest of the library: if such a kernel is called,
    the driver reports that it has no kernel image for this GPU, and does not run zeros.
    """
    binaries = list(fat_binaries(bytes(library)))
    others = [image for _, images in binaries for image in images if image.architecture != needs.architecture]
    smallest = min(others, key=lambda image: image.end - image.start, default=None)
    filler = bytes(library[smallest.start : smallest.end]) if smallest else b""
    blank = []
    for start, images in binaries:
        needed = b""
        for image in images:
            if image.architecture == needs.architecture and not name.endswith(needs.unused_libraries):
                cubin = bytes(library[image.payload : image.code_end])
                if needs.kernels(kernel_names(cubin if cubin.startswith(b"\x7fELF") else decompress(cubin))):
                    needed += library[image.start : image.end]
        needed = needed or filler
        first_blank, end = start + HEADER_BYTES + len(needed), images[-1].end
        struct.pack_into("<Q", library, start + 8, len(needed))
        library[start + HEADER_BYTES : first_blank] = needed
        library[first_blank:end] = bytes(end - first_blank)
        blank.append((first_blank, end - first_blank))
    return blank

"""Find the GPU code in a shared library. Keep what one program needs on one GPU, and overwrite the rest with zeros.

nvcc puts GPU code into a library as "fat binaries". A fat binary has one image for each architecture that the library
was built for. Images are the largest part of a GPU library.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
"""First bytes of a fat binary: magic number (u32), version (u16), size of this header (u16)"""
HEADER_BYTES = 16
"""Bytes before the first image: MAGIC, then the size of all images (u64)"""


@dataclass(frozen=True)
class Image:
    """An image: GPU code for one architecture. Offsets are in bytes from the start of the library."""

    start: int
    payload: int
    """Offset of the code, which follows the header of the image"""
    code_end: int
    end: int
    """End of the image. After compressed code there are some bytes of padding"""
    architecture: int
    """Architecture as a number: 90 for compute capability 9.0"""


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
    """Return the mangled names of the kernels in a cubin.

    The kernel NAME is the section `.text.NAME` of the ELF file.
    """
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
    """A description of the GPU code that must stay in a library."""

    architecture: int
    unused_libraries: tuple[str, ...] = ()
    """Suffixes of file names. The GPU code of a library with such a name is not needed at all"""
    unused_kernels: re.Pattern[str] = re.compile("(?!)")
    """Pattern that is found in the names of kernels that are not needed. The default keeps all kernels"""

    def kernels(self, names: list[str]) -> bool:
        """Return whether an image with these kernels is needed.

        An image without kernels has variables and is needed.
        """
        real = [name for name in names if "EmptyKernel" not in name]
        return not real or any(not self.unused_kernels.search(name) for name in real)


def trim(name: str, library: bytearray, needs: Needs, decompress: Callable[[bytes], bytes]) -> list[tuple[int, int]]:
    """Move the needed images of each fat binary to its start and fill the rest with zeros, in place.

    Return (start, size) of the parts with zeros. No other byte of the library moves. Each fat binary then looks as if
    it was built for fewer architectures. A fat binary without needed images gets the smallest image of the library for
    another architecture: if one of its kernels is called, the driver reports a missing kernel image for this GPU
    instead of running zeros.
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

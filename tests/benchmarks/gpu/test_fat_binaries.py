"""Tests of cutting GPU code out of libraries. The libraries are artificial."""

from __future__ import annotations

import re
import struct

import pytest

from benchmarks.gpu.fat_binaries import MAGIC, Needs, fat_binaries, kernel_names, trim

WANTED, OTHER = 90, 80
IMAGE_HEADER = 64
NEEDS = Needs(WANTED, unused_libraries=("_unused.so",), unused_kernels=re.compile("lamb"))


def cubin(*kernels: str) -> bytes:
    """Return a 64-bit ELF file with a section `.text.NAME` for each kernel."""
    names = b"\0" + b"".join(f".text.{kernel}\0".encode() for kernel in kernels) + b".shstrtab\0"
    offsets = [names.index(f".text.{kernel}\0".encode()) for kernel in kernels] + [names.index(b".shstrtab\0")]
    header_bytes, section_bytes = 64, 64
    sections = b"".join(
        struct.pack("<I20xQ32x", offset, header_bytes if number == len(kernels) else 0)
        for number, offset in enumerate(offsets)
    )
    header = bytearray(header_bytes)
    header[:4] = b"\x7fELF"
    struct.pack_into("<Q", header, 0x28, header_bytes + len(names))
    struct.pack_into("<HHH", header, 0x3A, section_bytes, len(offsets), len(offsets) - 1)
    return bytes(header) + names + sections


def image(architecture: int, code: bytes, compressed: bool = False) -> bytes:
    """Return an image. As compression the code is reversed, with three bytes of padding after it."""
    payload = code[::-1] + b"\0\0\0" if compressed else code
    header = bytearray(IMAGE_HEADER)
    struct.pack_into("<HHIQI", header, 0, 2, 1, IMAGE_HEADER, len(payload), len(code) if compressed else 0)
    struct.pack_into("<I", header, 28, architecture)
    return bytes(header) + payload


def binary(*images: bytes) -> bytes:
    content = b"".join(images)
    return MAGIC + struct.pack("<Q", len(content)) + content


def decompress(code: bytes) -> bytes:
    return code[::-1]


def images_of(library: bytes) -> list[list[bytes]]:
    return [[library[image.start : image.end] for image in images] for _, images in fat_binaries(library)]


def test_kernel_names_are_the_text_sections() -> None:
    assert kernel_names(cubin("adagrad", "sgd")) == ["adagrad", "sgd"]
    assert kernel_names(cubin()) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_trim_leaves_images_of_the_architecture_with_needed_kernels(compressed: bool) -> None:
    needed = image(WANTED, cubin("adagrad", "lamb_1"), compressed)
    unneeded = image(WANTED, cubin("lamb_2"), compressed)
    other = image(OTHER, cubin("adagrad"))
    before, between, after = b"host code", b"more host code", b"data"
    library = bytearray(before + binary(other, unneeded, needed) + between + binary(needed, other) + after)
    size = len(library)
    blank = trim("library.so", library, NEEDS, decompress)
    assert len(library) == size
    assert images_of(bytes(library)) == [[needed], [needed]]
    assert [bytes(library[start : start + length]) for start, length in blank] == [
        bytes(len(other) + len(unneeded)),
        bytes(len(other)),
    ]
    assert library.startswith(before)
    assert between in library
    assert library.endswith(after)


def test_trim_leaves_an_image_of_another_architecture_where_no_image_is_needed() -> None:
    small, large = image(OTHER, cubin("a")), image(OTHER, cubin("a_long_name"))
    library = bytearray(binary(large, image(WANTED, cubin("lamb"))) + binary(small, image(WANTED, cubin("adagrad"))))
    trim("library.so", library, NEEDS, decompress)
    assert images_of(bytes(library)) == [[small], [image(WANTED, cubin("adagrad"))]]


def test_trim_leaves_no_gpu_code_of_an_unused_library() -> None:
    other = image(OTHER, cubin("adagrad"))
    library = bytearray(binary(other, image(WANTED, cubin("adagrad"))))
    trim("library_unused.so", library, NEEDS, decompress)
    assert images_of(bytes(library)) == [[other]]


def test_an_image_without_kernels_stays() -> None:
    variables = image(WANTED, cubin())
    library = bytearray(binary(image(OTHER, cubin("adagrad")), variables, image(WANTED, cubin("EmptyKernel"))))
    trim("library.so", library, NEEDS, decompress)
    assert images_of(bytes(library)) == [[variables, image(WANTED, cubin("EmptyKernel"))]]

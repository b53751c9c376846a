"""The kernels where there is no GPU: run by Triton's interpreter, and compiled for devices that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
from asymdiffrec.diffusion.kernels import drop_fields_triton as kernels  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs inside of one of these tests")
POINTERS = {
    "missing": "*u8",
    "sample_index": "*i64",
    "step": "*u8",
    "bits": "*u8",
    "quantiles": "*fp32",
    "reach": "*fp32",
    "factors": "*fp32",
    "chunk_field": "*i64",
    "group_start": "*i32",
}
OF_LAW = {"FIELDS": 39, "CELLS": 1, "PATTERNS": 5, "SEARCH": 3}


def test_the_operator_is_as_exact_in_the_interpreter() -> None:
    """Every test of the operator, with the kernels in place of the code for CPU."""
    tests = Path(__file__).with_name("test_drop_fields.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def compiled(kernel: Any, architecture: int, width: int, both: bool, **pointers: str) -> Any:
    """`kernel` for 39 fields of `width` columns, from 16-byte aligned tensors."""
    constants = {"BOTH": both, **kernels._tile(39 * width, 39, 39)}
    constants |= {"GROUPS": 5} if kernel is kernels._backward else OF_LAW
    types = {**POINTERS, **pointers, "seed": "i64", "batch": "i32"}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if name not in constants and types[name].startswith("*")
        },
    )
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": kernels.WARPS})


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(("width", "both"), [(128, True), (16, False)])
def test_compiled_accesses_are_of_16_bytes_and_nothing_spills(
    architecture: int, width: int, both: bool, tmp_path: Path
) -> None:
    wide, narrow = "*fp32", "*bf16" if both else "*fp32"
    forward = compiled(kernels._forward, architecture, width, both, clean=wide, views=narrow)
    backward = compiled(kernels._backward, architecture, width, both, gradient=narrow, result=wide)
    for kernel in (forward, backward):
        accesses = set(re.findall(r"(?:ld|st)\.global[\w:.]*\.v\d\.\w+", kernel.asm["ptx"]))
        assert accesses == {"ld.global.v4.b32", "st.global.v4.b32"}
        (tmp_path / "cubin").write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", tmp_path / "cubin"], capture_output=True, text=True).stdout
        assert re.search(r"STACK:0 .*LOCAL:0 ", usage), usage

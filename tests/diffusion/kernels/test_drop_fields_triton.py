"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for several GPU architectures."""

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

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="a test of this file is running the interpreter"
)
POINTERS = {
    "missing": "*u8",
    "sample_index": "*i64",
    "masked": "*u8",
    "packed": "*u8",
    "quantiles": "*fp32",
    "pattern_cdf": "*fp32",
    "factors": "*fp32",
    "chunk_field": "*i64",
    "byte_start": "*i32",
}
LAW_CONSTANTS = {"FIELDS": 39, "CELLS": 1, "PATTERNS": 5, "SEARCH": 3}


def test_operator_is_exact_in_the_interpreter() -> None:
    """Run every test of the operator with the Triton kernels instead of the code for CPU."""
    tests = Path(__file__).with_name("test_drop_fields.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def compiled(kernel: Any, architecture: int, width: int, both: bool, **pointers: str) -> Any:
    """Return `kernel` compiled for 39 fields of width `width` and tensors that are aligned to 16 bytes."""
    constants = {"BOTH": both, **kernels._tile(39 * width, 39, 39)}
    constants |= {"BYTES": 5} if kernel is kernels._backward else LAW_CONSTANTS
    types = {**POINTERS, **pointers, "seed": "i64", "batch": "i32"}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else types[name] for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(kernel.arg_names)
            if name not in constants and types[name].startswith("*")
        },
    )
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": kernels.WARPS_PER_PROGRAM})


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(("width", "both"), [(128, True), (16, False)])
def test_compiled_kernels_access_16_bytes_at_once_and_do_not_spill(
    architecture: int, width: int, both: bool, tmp_path: Path
) -> None:
    input_type, view_type = "*fp32", "*bf16" if both else "*fp32"
    forward = compiled(kernels._forward, architecture, width, both, clean=input_type, views=view_type)
    backward = compiled(kernels._backward, architecture, width, both, gradient=view_type, result=input_type)
    for kernel in (forward, backward):
        accesses = set(re.findall(r"(?:ld|st)\.global[\w:.]*\.v\d\.\w+", kernel.asm["ptx"]))
        assert accesses == {"ld.global.v4.b32", "st.global.v4.b32"}
        (tmp_path / "cubin").write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", tmp_path / "cubin"], capture_output=True, text=True).stdout
        assert re.search(r"STACK:0 .*LOCAL:0 ", usage), usage

"""Measure the forward process: its time compared with torch, its bandwidth compared with a copy; and the dense step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.forward import ForwardConfig, ForwardProcess
from asymdiffrec.diffusion.kernels.drop_fields import ColumnChunks, DropLaw
from asymdiffrec.diffusion.methods import AsymmetricDiffusion
from asymdiffrec.field_layout import FieldLayout
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result

FIELDS = 39
REPEATS = 20
NO_GOAL = ("", None)


class Case:
    """A batch of one type, and functions that compute its views by our operator and by torch.

    The views are the noisy view, or if `both` is true the clean and the noisy view in bf16.
    """

    def __init__(self, batch: int, width: int, dtype: torch.dtype, both: bool, device: str) -> None:
        self.both_as = torch.bfloat16 if both else None
        out = self.both_as or dtype
        self.width = width
        self.name = f"D = {width}, {_name(dtype)} to {'both views in ' if both else ''}{_name(out)}"
        self.clean = torch.randn(batch, FIELDS * width, device=device).to(dtype)
        self.missing = torch.rand(batch, FIELDS, device=device) < 0.1
        self.samples = torch.arange(batch, device=device)
        self.process = ForwardProcess(FieldLayout.from_widths([width] * FIELDS), ForwardConfig(), seed=1).to(device)
        chunks = [self.process.get_buffer(name) for name in ColumnChunks._fields]
        law = [self.process.get_buffer(name) for name in DropLaw._fields]
        views, self.mask, bits = torch.ops.asymdiffrec.drop_fields(
            self.clean, self.missing, self.samples, 1, *law, *chunks, out, both
        )
        self.upstream = torch.randn_like(views)
        self._for_backward = (self.upstream, bits, *chunks, dtype, both)
        kept_share = 1 - self.mask.float().mean().item()
        read, written = self.clean.nbytes * (1.0 if both else kept_share), views.nbytes
        self.forward_bytes = read + written + sum(x.nbytes for x in (self.missing, self.mask, self.samples, bits))
        upstream_read = self.upstream.nbytes * ((1 + kept_share) / 2 if both else kept_share)
        self.backward_bytes = upstream_read + self.clean.nbytes + bits.nbytes
        self.compiled_forward, self.compiled_backward = (
            torch.compile(self.torch_forward, dynamic=False),
            torch.compile(self.torch_backward, dynamic=False),
        )

    def forward(self) -> object:
        """Compute the views by our operator."""
        return self.process(self.clean, self.missing, self.samples, both_as=self.both_as)

    def backward(self) -> object:
        """Compute the gradient of the clean view by our operator."""
        return torch.ops.asymdiffrec.drop_fields_backward(*self._for_backward)

    def torch_forward(self) -> object:
        """Compute the views by torch in the cheapest way. The random numbers depend on the batch, not on the sample."""
        time = 0.8 * torch.rand(len(self.clean), 1, device=self.clean.device)
        mask = self.missing | (torch.rand(self.missing.shape, device=self.clean.device) < time)
        noisy = _zero(self.clean, mask)
        return (noisy if self.both_as is None else torch.cat([self.clean, noisy]).to(self.both_as)), mask

    def torch_backward(self) -> object:
        """Compute the gradient of the clean view by torch."""
        batch = len(self.clean)
        noisy = _zero(self.upstream[-batch:], self.mask).to(self.clean.dtype)
        return noisy if self.both_as is None else noisy + self.upstream[:batch]


def _zero(x: Tensor, mask: Tensor) -> Tensor:
    return x.unflatten(1, (FIELDS, -1)).masked_fill(mask[:, :, None], 0).flatten(1)


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def repeated(function: Callable[[], object], device: str) -> Callable[[], None]:
    """Return a function that calls `function` REPEATS times.

    On CUDA it replays a CUDA graph, so the time does not include kernel launches by the host.
    """
    if device == "cpu":
        return _looped(function)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    return _looped(graph.replay)


def _looped(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(REPEATS):
            function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def copy_rate(device: str, rounds: int) -> float:
    """Return the bandwidth of `copy_` in GB/s, reads plus writes, at the fastest of some sizes.

    Other sizes are up to a fifth slower.
    """
    rates = []
    for size in (2**26, 40_000 * 4096, 2**28) if device == "cuda" else (4096 * FIELDS * 16,):
        source = torch.randn(size, device=device)
        target = torch.empty_like(source)
        for copy in (_looped(lambda: target.copy_(source)), repeated(lambda: target.copy_(source), device)):  # noqa: B023
            seconds, again = alternate(copy, copy, rounds)
            rates.append(2 * source.nbytes * REPEATS / 1e9 / min(seconds, again))
    return max(rates)


def operator_results(case: Case, copy_gb_per_s: float, device: str, rounds: int) -> Iterator[Result]:
    """Compare forward and backward time with torch, eager and compiled, and the bandwidth with a copy."""
    passes = {
        "forward": (case.forward, case.torch_forward, case.compiled_forward, case.forward_bytes),
        "backward": (case.backward, case.torch_backward, case.compiled_backward, case.backward_bytes),
    }
    for direction, (ours, eager, compiled, size) in passes.items():
        run, name = repeated(ours, device), f"{direction}, {case.name}"
        peers = {"eager torch": eager} | ({"torch.compile": compiled} if device == "cuda" else {})
        times = []
        for peer, function in peers.items():
            seconds = alternate(run, repeated(function, device), rounds)
            milliseconds, theirs = (1e3 * total / REPEATS for total in seconds)
            yield Result(name, milliseconds, "ms", peer, theirs)
            times.append(milliseconds)
        rate = size / 1e6 / max(times)
        has_goal = device == "cuda" and case.width >= 64
        goal = ("at least 0.9 of it", rate >= 0.9 * copy_gb_per_s) if has_goal else NO_GOAL
        yield Result(f"{name}: bandwidth", rate, "GB/s", "copy", copy_gb_per_s, *goal)


def dense_steps(batch: int, width: int, hidden: list[int], device: str, rounds: int) -> Iterator[Result]:
    """Measure the time of the dense part, with bf16 autocast on CUDA, and the share of the forward process."""
    case = Case(batch, width, torch.float32, device == "cuda", device)
    label, weight = torch.randint(2, (batch,), device=device).float(), torch.ones(batch, device=device)

    def step_of(method: str, *, compiled: bool = False) -> Callable[[], None]:
        model = AsymmetricDiffusion(
            FieldLayout.from_widths([width] * FIELDS),
            ModelConfig.model_validate({"extractor": {"name": "mlp", "hidden": hidden}}),
            DiffusionConfig.model_validate({"method": method}),
            seed=1,
        ).to(device)
        if compiled:
            model.compile(dynamic=False)

        def step() -> None:
            clean = case.clean.detach().requires_grad_()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss, _ = model(clean, case.missing, label, weight, case.samples)
            loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return step

    asymdiff, base = step_of("asymdiff"), step_of("base")
    name = f"dense step of asymdiff, D = {width}, MLP {'-'.join(map(str, hidden))}"
    ours, theirs = (1e3 * seconds for seconds in alternate(asymdiff, base, rounds))
    yield Result(name, ours, "ms", "base", theirs)
    if device == "cuda":
        for method, eager in (("asymdiff", asymdiff), ("base", base)):
            ours, theirs = (1e3 * seconds for seconds in alternate(step_of(method, compiled=True), eager, rounds))
            yield Result(name.replace("asymdiff", f"{method}, compiled"), ours, "ms", "not compiled", theirs)
    alone = repeated(lambda: (case.forward(), case.backward()), device)
    duration, whole = (1e3 * seconds for seconds in alternate(alone, asymdiff, rounds))
    duration /= REPEATS
    yield Result(f"forward process in the {name}", duration, "ms", "that step", whole)


def measure(quick: bool, device: str) -> Iterator[Result]:
    """Yield all results on a device."""
    rounds = 2 if quick else 9
    if device == "cuda":
        batch, hidden, width = 65_536, [1024, 512, 256], 128
        cases = [(w, t, b) for w in (16, 64, 128) for t, b in ((torch.bfloat16, False), (torch.float32, True))]
    else:
        batch, hidden, width = 512 if quick else 4096, [400, 400, 400], 16
        cases = [(16, torch.float32, False)]
    copy_gb_per_s = copy_rate(device, rounds)
    for fields_width, dtype, both in cases:
        yield from operator_results(Case(batch, fields_width, dtype, both, device), copy_gb_per_s, device, rounds)
    yield from dense_steps(batch, width, hidden, device, rounds)


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    options = arguments(__doc__ or "")
    results = list(measure(options.quick, "cuda" if torch.cuda.is_available() else "cpu"))
    show(results, options)


if __name__ == "__main__":
    main()

"""Measuring: contenders take turns in one process, so that a busy moment or a warm cache favours none of them."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import config

Call = Callable[[], Any]

LEAST_ROUNDS, MOST_ROUNDS = 5, 200
LEAST_SECONDS = 1e-2  # of one turn: shorter calls are repeated, so that the first, on cold caches, weighs little
LOADED = 0.05  # waited for a processor in more than this share of the time
WARM_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""glibc's environment for a heap that keeps what it got: large buffers come without page faults."""
_PACKAGES = (
    "torch", "numpy", "pytorch-metric-learning", "sentence-transformers", "open-metric-learning", "monai",
    "segmentation-models-pytorch", "kornia", "torchvision", "triton", "faiss-cpu", "scikit-learn", "pykeops",
)  # fmt: skip


@dataclass
class Contender:
    """Somebody whose calls are timed, and the turns so far: seconds a call."""

    call: Call
    threads: int
    prepare: Call = lambda: None
    calls: int = 1
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """One turn: as many calls as make it long enough to be timed."""
        torch.set_num_threads(self.threads)
        waited, cpu, start = _waiting(), time.process_time(), time.perf_counter()
        for _ in range(self.calls):
            self.prepare()
            self.call()
        wall = time.perf_counter() - start
        self.cpu.append((time.process_time() - cpu) / self.calls)
        self.waited.append((_waiting() - waited) / (wall * self.threads))
        self.wall.append(wall / self.calls)

    def quantiles(self) -> tuple[float, float, float]:
        """p20, p50 and p80 of the seconds of a call."""
        ordered = sorted(self.wall)
        return tuple(ordered[round(share * (len(ordered) - 1))] for share in (0.2, 0.5, 0.8))  # type: ignore[return-value]


class DeviceContender(Contender):
    """The same on a GPU: the time between two events on its stream, on which all calls of a turn are queued."""

    def turn(self) -> None:
        """One turn."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        cpu = time.process_time()
        begin.record()
        for _ in range(self.calls):
            self.prepare()
            self.call()
        end.record()
        self.cpu.append((time.process_time() - cpu) / self.calls)
        end.synchronize()
        self.waited.append(0.0)
        self.wall.append(1e-3 * begin.elapsed_time(end) / self.calls)


WARMING = 3  # calls before a capture: what is made once, a handle or a workspace, must not be made in it


def captured(call: Call, prepare: Call) -> Call:
    """The call as a CUDA graph: what replays its kernels, without Python or autograd, and returns the same tensors.

    What it prepares is done before the capture alone: gradients that are None then are written by each replay.
    """
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(WARMING):
            prepare()
            call()
    here.wait_stream(aside)
    prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()

    def replay() -> Any:
        graph.replay()
        return answer

    return replay


def _waiting() -> float:
    """Seconds that this process's threads have stood ready without a processor, since they began."""
    total = 0
    for task in os.scandir("/proc/self/task") if os.path.isdir("/proc/self/task") else ():  # noqa: PTH112
        try:
            with open(f"{task.path}/schedstat") as file:  # noqa: PTH123 - a hundred of these a second
                total += int(file.read().split()[1])
        except (OSError, IndexError):
            continue  # the thread has ended
    return total * 1e-9


def take_turns(contenders: Sequence[Contender], seconds: float) -> int:
    """Rounds until the time is used, each contender once a round in rotating order; returns how many.

    Every contender has been called before. Two more turns find out how long a call is and let the heap settle.
    """
    cost = 0.0
    for _ in range(2):
        if cost > seconds:
            break
        for each in contenders:
            each.turn()
            each.calls = max(1, min(1000, math.ceil(LEAST_SECONDS / min(each.wall))))
        cost = sum(min(each.wall) * each.calls for each in contenders)
    for each in contenders:
        for turns in (each.wall, each.cpu, each.waited):
            turns.clear()
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / cost)))
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            start = number % len(contenders)
            for each in (*contenders[start:], *contenders[:start]):
                each.turn()
    finally:
        gc.enable()
    return rounds


def extra_memory(contender: Contender) -> int | None:
    """Peak resident bytes of a call above those before it, free pages given back first; None where not known.

    The kernel's own high-water mark counts whoever allocates: torch, NumPy or C++.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        torch.set_num_threads(contender.threads)
        contender.prepare()
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        kept = contender.call()
        peak = _status("VmHWM")
    except (OSError, KeyError, AttributeError):
        return None
    del kept
    return max(0, peak - before)


def extra_device_memory(contender: Contender) -> int:
    """Peak bytes of torch's allocator on the GPU in a call, above those before it."""
    contender.prepare()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = contender.call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return max(0, peak - before)


def _status(name: str) -> int:
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(name + ":"):
            return int(text.split()[1]) * 1024
    raise KeyError(name)


# --- the machine ----------------------------------------------------------------------------------------------------


def ceilings(threads: int) -> dict[str, float]:
    """What the machine reaches: GFLOP/s of its best matrix product, GB/s read and written by copying."""
    torch.set_num_threads(threads)
    best = 0.0
    for size in (1024, 2048):
        x, out = torch.randn(size, size), torch.empty(size, size)
        best = max(best, 2e-9 * size**3 / _least(partial(torch.mm, x, x, out=out), 5))
    source = torch.ones(1 << 27)
    target = torch.empty_like(source)
    seconds = _least(lambda: target.copy_(source), 3)
    return {"gemm_gflops": best, "copy_gbs": 2e-9 * source.nbytes / seconds}


def device_ceilings() -> dict[str, float]:
    """What the GPU reaches: GB/s read and written by copying; GFLOP/s of the matrix product in float32, of which shares
    are taken, in TF32 and in bfloat16."""
    found = {"copy_gbs": _copy_bandwidth()}
    size = 8192
    allowed = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (
        ("gemm_gflops", torch.float32, False), ("tf32_gflops", torch.float32, True),
        ("bf16_gflops", torch.bfloat16, False),
    ):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x = torch.randn(size, size, device="cuda").to(dtype)
        out = torch.empty_like(x)
        found[name] = 2e-9 * size**3 / _least_on_device(partial(torch.mm, x, x, out=out), 10)
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return found


def _copy_bandwidth() -> float:
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / _least_on_device(lambda: target.copy_(source), 10)


def _least(call: Call, times: int) -> float:
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def _least_on_device(call: Call, times: int) -> float:
    contender = DeviceContender(call, 1)
    for _ in range(times + 1):
        contender.turn()
    return min(contender.wall[1:])


def device_name() -> str:
    """The GPU in words."""
    found = torch.cuda.get_device_properties(0)
    return (
        f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability {found.major}.{found.minor}, "
        f"CUDA {torch.version.cuda}"
    )


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Model, instruction sets, cores, versions, and how busy it was; the GPU, if that is what is measured."""
    cpu = _cpuinfo()
    return {
        **({} if device == "cpu" else {"device": device_name()}),
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "features": sorted(_FEATURES & set(cpu.get("flags", "").split())),
        "kernels": config()["cpu"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "versions": {"fastmine": config()["versions"]["fastmine"], **_versions()},
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load": round(os.getloadavg()[0], 2),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


_FEATURES = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile"}
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "FASTMINE_ISA", "LD_PRELOAD")


def _cpuinfo() -> Mapping[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (text.partition(":") for text in lines)}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)

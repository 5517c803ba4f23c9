"""Convolutional classifiers in torch on the CPU or a GPU: the peer of `benchmarks.nn`.

Run by a Python that has torch (`python -m benchmarks.nn --peer-python PATH`), which need not have JAX. Requests come as
lines of JSON on standard input, numbers travel as .npz files. A form is a memory layout, ``"NCHW"`` or ``"NHWC"``, and
for features also ``"NHWC, folded"`` (batch norm taken into the filters), ``"NHWC, folded, parts"`` (16 images at a
time, which spares fresh memory) and ``"NHWC, folded, bfloat16"``; everything has its form before the clock runs. ReLUs
work in place, features keep nothing for a gradient.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
else:
    try:
        import torch
    except ImportError:
        torch = None

#: Why this peer cannot run, or None.
UNAVAILABLE = "torch is not installed" if torch is None else None
LAYOUTS = ("NCHW", "NHWC")
#: What a user would write, and what else was tried; the last one rounds.
FEATURES = (*LAYOUTS, "NHWC, folded", "NHWC, folded, parts")
ROUNDED = "NHWC, folded, bfloat16"
PART = 16
#: Of SGD, on both sides.
RATE, MOMENTUM = 0.01, 0.9
#: Of batch norm, on both sides.
EPSILON, NORM_MOMENTUM = 1e-5, 0.9


class Server:
    """Holds networks and a batch, and answers requests about them."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(cores)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.calls: dict[tuple[str, str], Callable[[], Any]] = {}

    def load(self, problem: str, outputs: str, networks: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Read weights and a batch; write the features, and the losses of three steps of learning."""
        with np.load(problem) as held:
            self.images = torch.from_numpy(held["images"]).to(self.device).movedim(-1, 1).contiguous()
            self.labels = torch.from_numpy(held["labels"].astype(np.int64)).to(self.device)
            self.networks = {name: build(layers, held, name).to(self.device) for name, layers in networks.items()}
        network = copy.deepcopy(self.networks["cnn"])
        with torch.inference_mode():
            features = network.eval()[:-2](self.images).movedim(1, -1).contiguous().cpu().numpy()
        step = self._learn(network.train(), self.images)
        np.savez(outputs, features=features, losses=[float(step()) for _ in range(3)])
        return {"torch": torch.__version__, "device": self.device}

    def time(self, what: str, form: str, seconds: float) -> dict[str, Any]:
        """Return the seconds and the processor seconds of every call, and the largest resident memory meanwhile."""
        if (what, form) not in self.calls:
            self.calls[what, form] = self._call(what, form)
        call = self.calls[what, form]
        reset_peak()
        call()
        self._wait()
        wall, processor = [], []
        while sum(wall) < seconds:
            started, used = time.perf_counter(), time.process_time()
            call()
            self._wait()
            wall.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
        return {"wall": wall, "processor": processor, "resident_MiB": peak_mib()}

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _call(self, what: str, form: str) -> Callable[[], Any]:
        layout = torch.contiguous_format if form == "NCHW" else torch.channels_last
        images = self.images.clone(memory_format=layout)
        network = copy.deepcopy(self.networks["convpool" if what.startswith("ConvPool") else "cnn"])
        network = network.to(memory_format=layout)
        if what == "features":
            return self._features(network.eval()[:-2], images, form)
        if what == "frozen step":
            return self._head(network.eval()[:-2], network[-2:], images)
        if what == "live step":
            for module in network:
                if isinstance(module, torch.nn.Conv2d):
                    module.requires_grad_(False)
        return self._learn(network.train(), images)

    def _features(self, network: Any, images: Any, form: str) -> Callable[[], Any]:
        if "folded" in form:
            network = folded(network)
        if "bfloat16" in form:
            network, images = network.bfloat16(), images.bfloat16()

        def features() -> Any:
            with torch.inference_mode():
                if "parts" in form:
                    return torch.cat([network(part) for part in images.split(PART)])
                return network(images)

        return features

    def _head(self, network: Any, head: Any, images: Any) -> Callable[[], Any]:
        """Learn the layer on top of features that nothing below it changes."""
        network = folded(network)
        optimizer = torch.optim.SGD(head.parameters(), RATE, MOMENTUM, nesterov=True)

        def step() -> Any:
            with torch.no_grad():
                features = network(images)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(features), self.labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def _learn(self, network: Any, images: Any) -> Callable[[], Any]:
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, RATE, MOMENTUM, nesterov=True)

        def step() -> Any:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(images), self.labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step


def build(layers: list[dict[str, Any]], weights: Any, name: str) -> Any:
    """Return the network of a description; see `benchmarks.nn_ours.describe`."""
    modules: list[Any] = []
    for place, layer in enumerate(layers):
        kernel = torch.from_numpy(weights[f"{name} {place} kernel"])
        bias = torch.from_numpy(weights[f"{name} {place} bias"])
        if layer["kind"] == "dense":
            # Maps are flattened with the channels last, as on our side.
            module = torch.nn.Linear(*kernel.shape)
            module.weight.data, module.bias.data = kernel.T.contiguous(), bias
            modules += [_Flatten(), module]
            continue
        side, _, inputs, outputs = kernel.shape
        module = torch.nn.Conv2d(inputs, outputs, side, padding=layer["padding"], bias=not layer["norm"])
        module.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
        if module.bias is not None:
            module.bias.data = bias
        modules.append(module)
        if layer["norm"]:
            norm = torch.nn.BatchNorm2d(outputs, eps=EPSILON, momentum=1 - NORM_MOMENTUM)
            norm.running_mean = torch.from_numpy(weights[f"{name} {place} mean"])
            norm.running_var = torch.from_numpy(weights[f"{name} {place} variance"])
            modules.append(norm)
        if layer["relu"]:
            modules.append(torch.nn.ReLU(inplace=True))
        if layer["pool"]:
            window, stride, ceil = layer["pool"]
            modules.append(torch.nn.MaxPool2d(window, stride, ceil_mode=ceil))
    if layers[-1]["kind"] != "dense":
        modules += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*modules)


def folded(network: Any) -> Any:
    """Return the network with batch norm taken into the filters."""
    modules = list(network)
    found = []
    for place, module in enumerate(modules):
        if isinstance(module, torch.nn.BatchNorm2d):
            continue
        if place + 1 < len(modules) and isinstance(modules[place + 1], torch.nn.BatchNorm2d):
            module = torch.nn.utils.fusion.fuse_conv_bn_eval(module, modules[place + 1])
        found.append(module)
    return torch.nn.Sequential(*found)


class _Flatten(torch.nn.Module if torch else object):
    """Channels last, then one axis."""

    def forward(self, maps: Any) -> Any:
        return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1)


def reset_peak() -> None:
    """Forget the largest resident memory of this process (Linux; elsewhere it stays)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Return the largest resident memory of this process since `reset_peak`, in MiB; NaN where nothing tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    """Answer requests until standard input ends."""
    server = Server() if UNAVAILABLE is None else None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"error": UNAVAILABLE} if server is None else getattr(server, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

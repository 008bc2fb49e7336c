"""`twofold doctor`: whether results on this machine can be trusted, in about a minute."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from typing import Any

from twofold.cli import check
from twofold.cli.console import console, table

__all__ = ["examine", "show"]

PACKAGES = ("twofold", "numpy", "torch", "triton", "pytest", "hypothesis", "scipy", "ml_dtypes")
GPU = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
arch = [getattr(torch.cuda.get_device_properties(i), "gcnArchName", "").partition(":")[0] if torch.version.hip else
        "sm_%d%d" % torch.cuda.get_device_capability(i) for i in range(len(names))]
print(json.dumps([{"name": n, "architecture": a} for n, a in zip(names, arch)]))
"""
SAMPLE = "number_formats.bit_packing"  # a kernel whose every result is exact
INTERPRETER = "from twofold.conformance import interpreter; interpreter.install(); interpreter.self_test()"


def examine() -> dict[str, Any]:
    """Everything found, and `healthy`: whether nothing was wrong."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    findings: dict[str, Any] = {"versions": versions, "platform": platform.platform(), "gpus": [], "problems": [], "warnings": []}
    problems = findings["problems"]
    if versions["torch"] is None:
        problems.append("torch is missing, so only twofold.spec runs: install twofold with its extra 'fast'")
    else:
        output, error = _python(GPU)
        findings["gpus"] = json.loads(output) if output else []
        problems += [f"torch does not work: {error}"] if error else []
    if versions["triton"] is None:
        findings["interpreter"] = "no Triton here: twofold.fast runs its PyTorch side"
    else:
        error = _python(INTERPRETER, TRITON_INTERPRET="1")[1]
        findings["interpreter"] = error or "self-test passed"
        problems += [f"Triton's interpreter: {error}"] if error else []
        findings["warnings"] = _known_bad(versions["triton"], {gpu["architecture"] for gpu in findings["gpus"]})
    try:
        sample = check.run([SAMPLE], profile="quick", progress=False)
        findings["sample"] = f"{SAMPLE}: {sample['passed']} passed, {sample['failed']} failed"
        problems += [f"the suite fails on {SAMPLE}: twofold check {SAMPLE}"] if sample["failed"] else []
    except check.Unavailable as error:
        findings["sample"] = str(error)
    findings["healthy"] = not problems
    return findings


def show(findings: dict[str, Any]) -> None:
    machine = table("this machine", "")
    for name, version in findings["versions"].items():
        machine.add_row(name, version or "missing")
    machine.add_row("GPU", ", ".join(f"{gpu['name']} ({gpu['architecture']})" for gpu in findings["gpus"]) or "none")
    machine.add_row("interpreter", findings["interpreter"])
    machine.add_row("a sample", findings["sample"])
    console().print(machine)
    for warning in findings["warnings"]:
        console().print(f"known trouble: {warning}", markup=False)
    for problem in findings["problems"]:
        console().print(f"problem: {problem}", markup=False)
    side = "Triton kernels on the GPU" if findings["gpus"] else "PyTorch on the CPU; its Triton kernels can be checked in the interpreter"
    console().print(f"Healthy: twofold.fast runs as {side}." if findings["healthy"] else "Do not trust results on this machine yet.")


def _known_bad(triton: str, architectures: set[str]) -> list[str]:
    """What public issues report of this compiler on these GPUs: a kernel may still be right, so run `twofold check` before trusting one."""
    from twofold.conformance.known_bad import known_bad

    found = [(each, entry) for each in sorted(architectures) for entry in known_bad(triton, each)]
    return [f"Triton {triton} on {architecture}: {entry.what} ({entry.issue})" for architecture, entry in found]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python(source: str, **environment: str) -> tuple[str, str]:
    """What another Python prints, and the last line of its error if it failed: nothing heavy is imported in this process."""
    done = subprocess.run([sys.executable, "-c", source], env={**os.environ, **environment}, capture_output=True, text=True)
    return done.stdout.strip(), (done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}") if done.returncode else ""

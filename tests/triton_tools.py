"""Triton kernels without a GPU: run by Triton's interpreter, and compiled for GPUs that are not here.

Triton decides at import which of the two it does, so each happens in a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent


def run_interpreted(file: str) -> None:
    """Run tests/interpreted/<file> under pytest, with the interpreter."""
    _child(["-m", "pytest", "-q", "-p", "no:cacheprovider", f"interpreted/{file}"], TRITON_INTERPRET="1")


def compile_for(architecture: int, script: str) -> dict[str, dict[str, int]]:
    """Compile every kernel that `script` launches; what each takes: registers, bytes of stack, of shared memory."""
    start = f"from triton_tools import compiling\nwith compiling({architecture}):\n"
    output = _child(["-c", start + "".join(f"    {line}\n" for line in script.splitlines())], TRITON_INTERPRET="0")
    return json.loads(output.splitlines()[-1])


def _child(arguments: list[str], **environment: str) -> str:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    child = subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": path} | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr}"
    return child.stdout


@contextmanager
def compiling(architecture: int):
    """Launches compile for this GPU, exactly as they would there, and run nothing; in the end print what kernels take.

    The launchers see ordinary tensors on the CPU, so blocks, constants and what Triton assumes of the arguments are
    those of a real launch.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class NoDriver:
        def get_current_target(self):
            return GPUTarget("cuda", architecture, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    usage, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        now = resources(kernel.asm["cubin"]) | {"shared": kernel.metadata.shared}
        before = usage.setdefault(self.__name__, now)
        usage[self.__name__] = {key: max(now[key], before[key]) for key in now}

    triton.runtime.driver.set_active(NoDriver())
    JITFunction.run = compile_only
    yield
    print(json.dumps(usage))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory that one thread takes, read with the cuobjdump that Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key.lower(): int(re.search(rf"\b{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL")}

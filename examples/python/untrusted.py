"""Runs untrusted Python code: untrusted.py [IMAGE] < CODE

The code gets a VM of its own, restored from one in which the interpreter has run already, and no network; after ten seconds it is killed.
"""

import sys

import supermachine

ref = sys.argv[1] if len(sys.argv) > 1 else "python:3.12-slim"
image = supermachine.Image.from_oci(
    ref, boot_only=True, memory_mib=256, warmup=[["python3", "-c", "import json, math, random"]], progress=lambda e: print(e, file=sys.stderr)
)
with image, image.start() as vm:
    result = vm.run(["python3", "-"], input=sys.stdin.buffer.read(), timeout=10)
    sys.stdout.buffer.write(result.stdout)
    sys.stderr.buffer.write(result.stderr)
    if result.timed_out:
        print("it took longer than ten seconds", file=sys.stderr)
sys.exit(result.code)
